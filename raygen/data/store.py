"""Objects behind a URI: `s3://` through boto3, everything else a local path.

`AWS_ENDPOINT_URL` and the usual AWS variables and profiles are honoured. Every failure that a user
can mend leaves as a StorageError that names the URI.
"""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import IncompleteRead
from pathlib import Path
from typing import Any

import boto3
import botocore.exceptions as aws
import pyarrow.fs as pafs
from botocore.config import Config as BotoConfig
from urllib3.exceptions import ProtocolError, ReadTimeoutError

from raygen.errors import StorageError

BODY_ATTEMPTS = 4
_TORN = (ProtocolError, ReadTimeoutError, IncompleteRead, aws.ResponseStreamingError)


@dataclass(frozen=True)
class Object:
    """One listed object: its URI, its size in bytes, and its etag (local: mtime and size)."""

    uri: str
    size: int
    etag: str


def is_s3(uri: str) -> bool:
    """Whether `uri` names an S3 object or prefix."""
    return uri.startswith("s3://")


def absolute(uri: str) -> str:
    """The URI that means the same from any working directory."""
    return uri.rstrip("/") if is_s3(uri) else str(Path(uri).expanduser().resolve())


def join(uri: str, *parts: str) -> str:
    """`uri` with `parts` below it."""
    return "/".join([uri.rstrip("/"), *(part.strip("/") for part in parts)])


def list_objects(uri: str) -> Iterator[Object]:
    """Every object below `uri`, in lexicographic order.

    Raises StorageError where the bucket or folder does not exist or may not be read.
    """
    if not is_s3(uri):
        yield from _list_local(uri)
        return
    bucket, prefix = _split(uri)
    prefix = prefix.rstrip("/") + "/" if prefix else ""
    try:
        for page in (
            _client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        ):
            for item in page.get("Contents", ()):
                if not item["Key"].endswith("/"):
                    etag = item["ETag"].strip('"')
                    yield Object(f"s3://{bucket}/{item['Key']}", item["Size"], etag)
    except (aws.BotoCoreError, aws.ClientError) as error:
        raise _explain(error, uri) from None


def read_bytes(uri: str) -> bytes:
    """The whole object. Raises StorageError where it is missing or unreadable."""
    if not is_s3(uri):
        try:
            return Path(uri).read_bytes()
        except OSError as error:
            raise StorageError(f"cannot read {uri}: {error.strerror}", uri) from None
    bucket, key = _split(uri)
    # botocore retries the call, never the body: a torn one starts again here.
    for _ in range(BODY_ATTEMPTS):
        try:
            body: bytes = _client().get_object(Bucket=bucket, Key=key)["Body"].read()
            return body
        except _TORN:
            continue
        except (aws.BotoCoreError, aws.ClientError) as error:
            raise _explain(error, uri) from None
    raise StorageError(f"{uri} was cut off {BODY_ATTEMPTS} times while being read; try again", uri)


def write_bytes(uri: str, data: bytes) -> None:
    """Writes the object whole or not at all. Raises StorageError where that is not allowed."""
    if not is_s3(uri):
        path = Path(uri)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
                file.write(data)
            Path(file.name).chmod(0o644)
            Path(file.name).replace(path)
        except OSError as error:
            raise StorageError(f"cannot write {uri}: {error.strerror}", uri) from None
        return
    bucket, key = _split(uri)
    try:
        _client().put_object(Bucket=bucket, Key=key, Body=data)
    except (aws.BotoCoreError, aws.ClientError) as error:
        raise _explain(error, uri) from None


def exists(uri: str) -> bool:
    """Whether there is an object at `uri`."""
    if not is_s3(uri):
        return Path(uri).is_file()
    bucket, key = _split(uri)
    try:
        _client().head_object(Bucket=bucket, Key=key)
    except aws.ClientError as error:
        if error.response["ResponseMetadata"]["HTTPStatusCode"] == 404:
            return False
        raise _explain(error, uri) from None
    except aws.BotoCoreError as error:
        raise _explain(error, uri) from None
    return True


def delete(uri: str) -> None:
    """Removes the object at `uri`, if there is one."""
    if not is_s3(uri):
        Path(uri).unlink(missing_ok=True)
        return
    bucket, key = _split(uri)
    try:
        _client().delete_object(Bucket=bucket, Key=key)
    except (aws.BotoCoreError, aws.ClientError) as error:
        raise _explain(error, uri) from None


def check_writable(uri: str) -> None:
    """Raises StorageError unless an object below `uri` can be written."""
    probe = join(uri, ".raygen-write-check")
    write_bytes(probe, b"")
    delete(probe)


def open_storage(uri: str) -> tuple[pafs.FileSystem, str]:
    """`uri` as Arrow knows it: the filesystem, and the path within it (Ray Train, Parquet)."""
    if not is_s3(uri):
        return pafs.LocalFileSystem(), absolute(uri)
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    scheme, _, host = endpoint.rpartition("://")
    region = _session().region_name or "us-east-1"
    filesystem = pafs.S3FileSystem(
        endpoint_override=host or None, scheme=scheme or "https", region=region
    )
    return filesystem, uri.removeprefix("s3://").rstrip("/")


def _list_local(uri: str) -> Iterator[Object]:
    root = Path(absolute(uri))
    if root.is_file():
        paths = [root]
    elif root.is_dir():
        paths = sorted(path for path in root.rglob("*") if path.is_file())
    else:
        raise StorageError(f"no folder at {uri}", uri)
    for path in paths:
        stat = path.stat()
        yield Object(str(path), stat.st_size, f"{stat.st_mtime_ns:x}-{stat.st_size:x}")


def _split(uri: str) -> tuple[str, str]:
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    if not bucket:
        raise StorageError(f"{uri!r} names no bucket; write s3://bucket/prefix", uri)
    return bucket, key


def _session() -> boto3.Session:
    return boto3.Session()


_local = threading.local()


def _client() -> Any:
    # A session is not safe to share between threads, and a client costs 50 ms to make.
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    clients = _local.__dict__.setdefault("clients", {})
    if endpoint not in clients:
        clients[endpoint] = _session().client(
            "s3",
            region_name=_session().region_name or "us-east-1",
            config=BotoConfig(
                retries={"mode": "adaptive", "max_attempts": 8},
                connect_timeout=10,
                read_timeout=30,
            ),
        )
    return clients[endpoint]


def _explain(error: Exception, uri: str) -> StorageError:
    bucket = uri.removeprefix("s3://").partition("/")[0]
    if isinstance(error, aws.NoCredentialsError | aws.PartialCredentialsError):
        return StorageError(
            f"no AWS credentials for {uri}; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
            "or AWS_PROFILE",
            uri,
        )
    if isinstance(error, aws.EndpointConnectionError | aws.ConnectTimeoutError):
        return StorageError(f"cannot reach S3 for {uri}: {error}", uri)
    if isinstance(error, aws.ClientError):
        code = error.response.get("Error", {}).get("Code", "")
        if code == "NoSuchBucket":
            return StorageError(f"no bucket {bucket!r} (in {uri}); create it or correct it", uri)
        if code in ("NoSuchKey", "404"):
            return StorageError(f"no object at {uri}", uri)
        if code in ("AccessDenied", "403", "InvalidAccessKeyId", "SignatureDoesNotMatch"):
            return StorageError(f"access to {uri} denied ({code}); check the credentials", uri)
        if code in ("ExpiredToken", "ExpiredTokenException", "RequestExpired"):
            return StorageError(f"the AWS credentials for {uri} have expired; renew them", uri)
    return StorageError(f"S3 failed on {uri}: {' '.join(str(error).split())}", uri)
