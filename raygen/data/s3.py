"""S3 through boto3: what passes is waited out, what does not pass is said at once.

One layer retries. botocore is told to try once, because it never retries a body; here the whole of
a request begins again, body included, after a pause of exponential backoff with full jitter:

    503, 500, 502, 504, 429, resets, bodies cut off, silence   for RETRY_S
    an endpoint that cannot be reached                         for UNREACHABLE_S
    credentials, permissions, a missing bucket or object       not at all

Silence is RAYGEN_S3_TIMEOUT_S seconds (10 where it is unset) without a byte.
"""

from __future__ import annotations

import itertools
import math
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, NamedTuple, TypeVar

import boto3
import botocore.exceptions as aws
from botocore.config import Config as BotoConfig
from urllib3.exceptions import HTTPError

from raygen.errors import AccessError, ObjectChanged, StorageError

RETRY_S = 90.0
UNREACHABLE_S = 3.0
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 10.0
CONNECTIONS = 64
PAGE_KEYS = 1000  # the most that S3 lists at once
PART_BYTES = 64 << 20  # what is larger goes up in parts: S3 takes 5 GiB at once
PARTS_AT_ONCE = 4

T = TypeVar("T")

# urllib3's own reach us from a body: botocore translates only some of them.
_TORN = (aws.HTTPClientError, aws.IncompleteReadError, HTTPError)
_FAILED = (aws.BotoCoreError, aws.ClientError, HTTPError)
_NO_CREDENTIALS = (aws.NoCredentialsError, aws.PartialCredentialsError)
_BAD_CREDENTIALS = (
    aws.ConfigNotFound,
    aws.ConfigParseError,
    aws.CredentialRetrievalError,
    aws.InvalidConfigError,
    aws.MetadataRetrievalError,
    aws.ProfileNotFound,
    aws.SSOError,
    aws.TokenRetrievalError,
)
_BUSY = {"ConditionalRequestConflict", "OperationAborted", "RequestTimeout", "SlowDown"}
_EXPIRED = {"ExpiredToken", "ExpiredTokenException", "RequestExpired", "TokenRefreshRequired"}
_DENIED = {
    *("403", "AccessDenied", "AccountProblem", "AllAccessDisabled", "InvalidAccessKeyId"),
    *("InvalidToken", "SignatureDoesNotMatch"),
}


def split(uri: str) -> tuple[str, str]:
    """The bucket and the key of `s3://bucket/key`."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    if not bucket:
        raise StorageError(f"{uri!r} names no bucket; write s3://bucket/prefix", uri)
    return bucket, key


def changed(uri: str) -> ObjectChanged:
    """What to raise where the object at `uri` has another etag than the catalogue says."""
    return ObjectChanged(
        f"{uri} was replaced since it was scanned; run `raygen data scan` again", uri
    )


def get(uri: str, span: tuple[int, int] | None = None, etag: str | None = None) -> bytes:
    """The object, or the bytes of it in [span[0], span[1]) that there are.

    Raises ObjectChanged where its etag is not `etag`, StorageError and AccessError.
    """
    bucket, key = split(uri)
    wanted: dict[str, str] = {} if etag is None else {"IfMatch": f'"{etag}"'}
    if span is not None:
        wanted["Range"] = f"bytes={span[0]}-{span[1] - 1}"

    def attempt(client: Any) -> bytes:
        try:
            body: bytes = client.get_object(Bucket=bucket, Key=key, **wanted)["Body"].read()
        except aws.ClientError as error:
            if _code(error) == "InvalidRange":  # begins at or beyond the object's end
                return b""
            raise
        return body

    return _persist(uri, attempt)


def put(uri: str, data: bytes, *, only_if_absent: bool = False) -> bool:
    """Writes the object; False where one was there already and `only_if_absent`."""
    bucket, key = split(uri)
    if len(data) > PART_BYTES and not only_if_absent:
        return _put_parts(uri, data)
    wanted = {"IfNoneMatch": "*"} if only_if_absent else {}
    attempts = 0

    def attempt(client: Any) -> bool:
        nonlocal attempts
        attempts += 1
        try:
            client.put_object(Bucket=bucket, Key=key, Body=data, **wanted)
        except aws.ClientError as error:
            if only_if_absent and _status(error) == 412:
                return False
            raise
        return True

    wrote = _persist(uri, attempt)
    # An attempt whose answer was lost may have written what the next one found in its way.
    return wrote or (attempts > 1 and get(uri) == data)


def _put_parts(uri: str, data: bytes) -> bool:
    """Writes the object by parts, each of which is tried again alone; it appears with the last."""
    bucket, key = split(uri)
    upload: dict[str, str] = {"Bucket": bucket, "Key": key}
    upload["UploadId"] = _persist(
        uri, lambda client: str(client.create_multipart_upload(**upload)["UploadId"])
    )
    attempts = 0

    def part(number: int) -> dict[str, Any]:
        # Numbers begin at 1.
        body = data[(number - 1) * PART_BYTES : number * PART_BYTES]
        answer = _persist(
            uri, lambda client: client.upload_part(**upload, PartNumber=number, Body=body)
        )
        return {"PartNumber": number, "ETag": answer["ETag"]}

    def complete(client: Any) -> bool:
        nonlocal attempts
        attempts += 1
        try:
            client.complete_multipart_upload(**upload, MultipartUpload={"Parts": parts})
        except aws.ClientError as error:
            # An attempt whose answer was lost may have completed it.
            if attempts == 1 or _code(error) != "NoSuchUpload":
                raise
        return True

    try:
        with ThreadPoolExecutor(PARTS_AT_ONCE) as threads:
            parts = list(threads.map(part, range(1, math.ceil(len(data) / PART_BYTES) + 1)))
        return _persist(uri, complete)
    except StorageError:
        # Parts that nobody completes are paid for until someone removes them.
        with suppress(StorageError):
            _persist(uri, lambda client: client.abort_multipart_upload(**upload))
        raise


def head(uri: str) -> bool:
    """Whether there is an object at `uri`."""
    bucket, key = split(uri)

    def attempt(client: Any) -> bool:
        try:
            client.head_object(Bucket=bucket, Key=key)
        except aws.ClientError as error:
            if _status(error) == 404:
                return False
            raise
        return True

    return _persist(uri, attempt)


def remove(uri: str) -> None:
    """Removes the object at `uri`, if there is one."""
    bucket, key = split(uri)
    _persist(uri, lambda client: client.delete_object(Bucket=bucket, Key=key))


def pages(uri: str, *, start_after: str = "", recursive: bool = True) -> Iterator[dict[str, Any]]:
    """The answers of ListObjectsV2 below the folder `uri`, beyond the key `start_after`."""
    bucket, prefix = split(uri)
    wanted: dict[str, Any] = {"Bucket": bucket, "MaxKeys": PAGE_KEYS}
    wanted |= {"Prefix": prefix.rstrip("/") + "/"} if prefix else {}
    wanted |= {} if recursive else {"Delimiter": "/"}
    wanted |= {"StartAfter": start_after} if start_after else {}
    while True:
        page = _persist(uri, lambda client: client.list_objects_v2(**wanted))
        yield page
        if not page["IsTruncated"]:
            return
        wanted["ContinuationToken"] = page["NextContinuationToken"]


class _Connection(NamedTuple):
    client: Any
    credentials: Any


_connections: dict[str | None, _Connection] = {}
_connecting = threading.Lock()


def _connection() -> _Connection:
    # A client may be shared between threads, and its connections with it; it costs 50 ms to make.
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    with _connecting:
        if endpoint not in _connections:
            _connections[endpoint] = _connect()
        return _connections[endpoint]


def _connect() -> _Connection:
    session = boto3.Session()
    config = BotoConfig(
        retries={"mode": "standard", "total_max_attempts": 1},
        connect_timeout=10,
        read_timeout=float(os.environ.get("RAYGEN_S3_TIMEOUT_S", "10")),
        max_pool_connections=CONNECTIONS,
        tcp_keepalive=True,
        # TLS and the length guard a body; its checksum is a sixth of the CPU of reading 2 MB.
        response_checksum_validation="when_required",
        request_checksum_calculation="when_required",
    )
    try:
        client = session.client("s3", region_name=session.region_name or "us-east-1", config=config)
    except ValueError as error:
        raise AccessError(f"AWS_ENDPOINT_URL must be a URL: {error}") from None
    return _Connection(client, _credentials(session))


def _credentials(session: boto3.Session) -> Any:
    credentials = session.get_credentials()
    return credentials and credentials.get_frozen_credentials()


def _renewed(expired: _Connection) -> bool:
    """Whether other credentials lie where the expired ones came from; they are used from then on.

    What a helper renews in ~/.aws/credentials is read once by boto3, so a long job reads it again.
    """
    try:
        if _credentials(boto3.Session()) == expired.credentials:
            return False
    except aws.BotoCoreError:
        return False
    with _connecting:
        for endpoint in [key for key, held in _connections.items() if held is expired]:
            del _connections[endpoint]
    return True


def _persist(uri: str, attempt: Callable[[Any], T]) -> T:
    started = time.monotonic()
    for tried in itertools.count(1):
        connection = None
        try:
            connection = _connection()
            return attempt(connection.client)
        except _FAILED as error:
            if connection is not None and _code(error) in _EXPIRED and _renewed(connection):
                continue
            pause = random.uniform(0, min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** (tried - 1)))
            spent = time.monotonic() - started
            if spent + pause >= _patience(error):
                raise _explain(error, uri, f"{tried} attempts in {spent:.0f} s") from None
            time.sleep(pause)
    raise AssertionError("count() does not end")


def _patience(error: Exception) -> float:
    """How many seconds of attempts a failure of this kind is worth."""
    if isinstance(error, _TORN) or _code(error) in _BUSY:
        return RETRY_S
    if _status(error) in (429, 500, 502, 503, 504):
        return RETRY_S
    return UNREACHABLE_S if isinstance(error, aws.ConnectionError) else 0.0


def _code(error: Exception) -> str:
    if isinstance(error, aws.ClientError):
        return str(error.response.get("Error", {}).get("Code", ""))
    return ""


def _status(error: Exception) -> int:
    if isinstance(error, aws.ClientError):
        return int(error.response["ResponseMetadata"]["HTTPStatusCode"])
    return 0


def _explain(error: Exception, uri: str, effort: str) -> StorageError:
    bucket, code = split(uri)[0], _code(error)
    said = " ".join(str(error).split())
    if isinstance(error, _NO_CREDENTIALS):
        return AccessError(
            f"no AWS credentials for {uri}; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
            "or AWS_PROFILE",
            uri,
        )
    if isinstance(error, _BAD_CREDENTIALS):
        return AccessError(f"no AWS credentials for {uri}: {said}", uri)
    if isinstance(error, aws.ConnectionError):
        return AccessError(f"cannot reach S3 for {uri}: {said}; check AWS_ENDPOINT_URL", uri)
    if code in _EXPIRED:
        return AccessError(f"the AWS credentials for {uri} have expired; renew them", uri)
    if code in _DENIED:
        return AccessError(f"access to {uri} denied ({code}); check the credentials", uri)
    if code == "RequestTimeTooSkewed":
        return AccessError(f"S3 refuses {uri} because this machine's clock is wrong; set it", uri)
    if code == "NoSuchBucket":
        return AccessError(f"no bucket {bucket!r} (in {uri}); create it or correct it", uri)
    if code in ("NoSuchKey", "404"):
        return StorageError(f"no object at {uri}", uri)
    if code == "InvalidObjectState":
        return StorageError(f"{uri} is archived; restore it to a class that can be read", uri)
    if _status(error) == 412:
        return changed(uri)
    if _patience(error):
        return StorageError(f"S3 kept failing on {uri} ({effort}), at last: {said}", uri)
    return StorageError(f"S3 failed on {uri}: {said}", uri)
