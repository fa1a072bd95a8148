"""Certificates of one day, made for a test: a chain of two and its key, as C2PA wants them."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest

pytest.importorskip("c2pa", reason="needs raygen[c2pa]")

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID


def chain(folder: Path, signer: str = "a test") -> tuple[str, str]:
    """Files of a chain and of its first certificate's key."""
    root_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    root = _certificate("a root", "a root", root_key, root_key)
    leaf = _certificate(signer, "a root", key, root_key)
    pem = serialization.Encoding.PEM
    certificates, secret = folder / "chain.pem", folder / "key.pem"
    certificates.write_bytes(leaf.public_bytes(pem) + root.public_bytes(pem))
    form = serialization.PrivateFormat.PKCS8
    secret.write_bytes(key.private_bytes(pem, form, serialization.NoEncryption()))
    return str(certificates), str(secret)


def _certificate(
    of: str,
    by: str,
    key: ec.EllipticCurvePrivateKey,
    signing: ec.EllipticCurvePrivateKey,
) -> x509.Certificate:
    root = of == by
    now, day = datetime.datetime.now(datetime.UTC), datetime.timedelta(days=1)
    usage = x509.KeyUsage(
        digital_signature=not root,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=root,
        crl_sign=root,
        encipher_only=False,
        decipher_only=False,
    )
    made = (
        x509.CertificateBuilder()
        .subject_name(_name(of))
        .issuer_name(_name(by))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - day)
        .not_valid_after(now + day)
        .add_extension(x509.BasicConstraints(root, None), True)
        .add_extension(usage, True)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signing.public_key()), False
        )
    )
    if not root:
        purpose = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION])
        made = made.add_extension(purpose, False)
    return made.sign(signing, hashes.SHA256())


def _name(common: str) -> x509.Name:
    organization = x509.NameAttribute(NameOID.ORGANIZATION_NAME, "raygen's tests")
    return x509.Name([organization, x509.NameAttribute(NameOID.COMMON_NAME, common)])
