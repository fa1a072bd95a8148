"""Content credentials (C2PA) in an mp4: that a model drew it, which one, and who says so.

    signer = Signer("chain.pem", "key.pem")            # pip install 'raygen[c2pa]'
    data = signer.sign(mp4, model="tiny", digest="0f3a91c2d4e5")
    read(data).intact, read(data).digest               # True, "0f3a91c2d4e5"

The manifest follows C2PA 2: one action, c2pa.created, whose source is trainedAlgorithmicMedia, and
which weights. Unlike the watermark it is a proof, and unlike that it goes with the next encoding.
Nothing here asks a network: neither for time stamps nor for revocations.
"""

from __future__ import annotations

import functools
import io
import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from raygen import __version__, video
from raygen.data import store
from raygen.errors import ConfigError

MODEL = "org.raygen.model"  # the assertion that names the weights
SOURCE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
MEDIA_TYPE = "video/mp4"
_UNTRUSTED = "signingCredential.untrusted"
_ALGORITHMS = {"secp256r1": "es256", "secp384r1": "es384", "secp521r1": "es512"}
_OFFLINE = {"verify": {"remote_manifest_fetch": False, "ocsp_fetch": False}}


@dataclass(frozen=True)
class Manifest:
    """What a file's manifest says, and whether that holds."""

    intact: bool  # signed by that signer, and nobody has changed the file since
    signer: str  # of its certificate, which no list of trust was asked about
    model: str  # "" where raygen did not write it
    digest: str
    faults: list[str]  # codes of C2PA 2, where it is not intact


class Signer:
    """Signs with a chain of certificates, the signer's own first, and its key; both PEM."""

    def __init__(self, certificates: str, key: str) -> None:
        """Reads files or objects. Raises StorageError, and ConfigError for what cannot sign."""
        self._c2pa = _library()
        chain, secret = store.read_bytes(certificates), store.read_bytes(key)
        self._info = (_algorithm(secret, key), chain, secret)
        try:
            tried = read(self.sign(video.encode_mp4(np.zeros((1, 16, 16, 3), np.uint8), 1), "", ""))
            reason = "" if tried is None or tried.intact else ", ".join(tried.faults)
        except self._c2pa.C2paError as error:
            reason = " ".join(str(error).split())[:200]
        if reason:
            raise ConfigError(
                f"{certificates} and {key} cannot sign: {reason}; give a chain of X.509 "
                "certificates for emailProtection or documentSigning, and the first one's key",
                "certificate",
            )

    def sign(self, mp4: bytes, model: str, digest: str) -> bytes:
        """The file with a manifest; the same file gives other bytes each time."""
        made_with = {"name": "raygen", "version": __version__}
        created = {
            "action": "c2pa.created",
            "digitalSourceType": SOURCE,
            "softwareAgent": made_with,
        }
        document = {
            "claim_generator_info": [made_with],
            "assertions": [
                {"label": "c2pa.actions.v2", "data": {"actions": [created]}},
                {"label": MODEL, "data": {"name": model, "digest": digest}},
            ],
        }
        signed = io.BytesIO()
        # A signer of its own each time: encoders are several threads.
        with self._signer() as signer, self._c2pa.Builder(json.dumps(document)) as builder:
            builder.sign(signer, MEDIA_TYPE, io.BytesIO(mp4), signed)
        return signed.getvalue()

    def _signer(self) -> Any:
        algorithm, chain, key = self._info
        return self._c2pa.Signer.from_info(self._c2pa.C2paSignerInfo(algorithm, chain, key, None))


def read(mp4: bytes) -> Manifest | None:
    """The manifest of a file, checked; None where there is none. Raises ConfigError."""
    c2pa = _library()
    settings = c2pa.Context.from_dict(_OFFLINE)
    try:
        with settings as context, c2pa.Reader(MEDIA_TYPE, io.BytesIO(mp4), context=context) as file:
            document = json.loads(file.json())
    except c2pa.C2paError.ManifestNotFound:
        return None
    except c2pa.C2paError as error:
        return Manifest(False, "", "", "", [" ".join(str(error).split())[:100]])
    active = document["manifests"][document["active_manifest"]]
    said = {each["label"]: each.get("data") for each in active.get("assertions", [])}
    model = said.get(MODEL) or {}
    signature = active.get("signature_info") or {}
    named = [signature.get("common_name"), signature.get("issuer")]
    faults = [each["code"] for each in document.get("validation_status", [])]
    faults = sorted({code for code in faults if code != _UNTRUSTED})
    return Manifest(
        not faults,
        ", ".join(each for each in named if each),
        str(model.get("name", "")),
        str(model.get("digest", "")),
        faults,
    )


def is_mp4(data: bytes) -> bool:
    """Whether it begins as one does."""
    return data[4:8] == b"ftyp"


@functools.cache
def _library() -> Any:
    try:
        import c2pa
    except ImportError:
        raise ConfigError("content credentials need C2PA: pip install 'raygen[c2pa]'") from None
    return c2pa


def _algorithm(secret: bytes, place: str) -> str:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    try:
        key = serialization.load_pem_private_key(secret, None)
    except (ValueError, TypeError):
        raise ConfigError(f"{place} is no PEM key without a password", "key") from None
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return "ed25519"
    if isinstance(key, rsa.RSAPrivateKey):
        return "ps256"
    if isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.name in _ALGORITHMS:
        return _ALGORITHMS[key.curve.name]
    raise ConfigError(f"{place}: C2PA signs with P-256, P-384, P-521, Ed25519 or RSA", "key")
