"""The certificates of a service that signs: its own authority for development, or files that an operator puts there."""

from __future__ import annotations

import os
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from ctm.files import write_whole
from ctm.foreign.text import read_text

__all__ = ["check_pem", "load_or_make", "needs", "trusted_of"]

CHAIN, KEY, AUTHORITY = "chain.pem", "key.pem", "ca.pem"
_YEARS = 10  # a manifest without a trusted time stamp is valid as long as its certificate


def needs(module: str) -> Any:
    """A module of the extra `serve`. Raises ValueError that says what to install."""
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ValueError(
            f"signed manifests need the package {module.split('.')[0]}, which is not installed: "
            'pip install "ctm-torch[serve]"'
        ) from error


def load_or_make(folder: Path) -> tuple[str, str, str]:
    """(signing algorithm, certificate chain in PEM with the leaf first, private key in PEM) of a folder.

    An empty folder gets an authority of its own and a leaf (P-256, ten years): chain.pem, key.pem, and ca.pem for whoever should
    trust it. The authority's key is thrown away. An operator's own chain.pem and key.pem are used as they are. Raises ValueError
    where one of the two is missing, they are not readable or not of each other, or the leaf has expired; OSError for a
    folder that cannot be written."""
    needs("cryptography.x509")
    chain, key = folder / CHAIN, folder / KEY
    if chain.is_file() != key.is_file():
        missing, there = (key, chain) if chain.is_file() else (chain, key)
        raise ValueError(f"{there} is there and {missing.name} is not: put both there, or remove {there.name}")
    if not chain.is_file():
        _make(folder)
    texts = read_text(chain), read_text(key)
    return _algorithm(chain, *texts), *texts


def check_pem(text: str, name: str) -> str:
    """The text, which holds certificates in PEM. Raises ValueError, naming it, if it holds none."""
    x509 = needs("cryptography.x509")
    try:
        x509.load_pem_x509_certificates(text.encode())
    except ValueError as error:
        raise ValueError(f"{name} holds no certificates in PEM (-----BEGIN CERTIFICATE-----)") from error
    return text


def trusted_of(folder: Path) -> str:
    """The certificates, in PEM, that vouch for what a folder signs: its ca.pem, else the root at the end of the chain.pem that an
    operator put there, one that signed itself.

    Raises ValueError where there is neither: a chain may end below the root, and then it does not say whom to trust."""
    if (folder / AUTHORITY).is_file():
        return read_text(folder / AUTHORITY)
    advice = "give --trust FILE.pem with the certificates that sign for it"
    if not (folder / CHAIN).is_file():
        raise ValueError(f"{folder} has no {AUTHORITY} and no {CHAIN}, so none of its signers is known: {advice}")
    x509, serialization = needs("cryptography.x509"), needs("cryptography.hazmat.primitives.serialization")
    text = check_pem(read_text(folder / CHAIN), str(folder / CHAIN))
    last, unfit = x509.load_pem_x509_certificates(text.encode())[-1], needs("cryptography.exceptions")
    try:
        last.verify_directly_issued_by(last)
    except (ValueError, TypeError, unfit.InvalidSignature, unfit.UnsupportedAlgorithm) as error:
        raise ValueError(
            f"{folder / CHAIN} does not end with a root certificate, and there is no {AUTHORITY}: add the root to one of "
            f"them, or {advice}"
        ) from error
    return str(last.public_bytes(serialization.Encoding.PEM).decode())


def _algorithm(file: Path, chain: str, key: str) -> str:
    """The signing algorithm of C2PA for this key. Raises ValueError as `load_or_make`."""
    x509, serialization = needs("cryptography.x509"), needs("cryptography.hazmat.primitives.serialization")
    check_pem(chain, str(file))
    leaf = x509.load_pem_x509_certificates(chain.encode())[0]
    try:
        private = serialization.load_pem_private_key(key.encode(), password=None)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{file.parent / KEY} is no private key in PEM without a password") from error
    public = {"encoding": serialization.Encoding.DER, "format": serialization.PublicFormat.SubjectPublicKeyInfo}
    if private.public_key().public_bytes(**public) != leaf.public_key().public_bytes(**public):
        raise ValueError(f"{file.parent / KEY} is not the key of the first certificate in {file}")
    if leaf.not_valid_after_utc < datetime.now(timezone.utc):
        raise ValueError(
            f"the certificate in {file} expired on {leaf.not_valid_after_utc:%Y-%m-%d}: put a new one there"
        )
    name = getattr(getattr(private, "curve", None), "name", type(private).__name__.lower())
    for part, algorithm in (("secp256r1", "es256"), ("secp384r1", "es384"), ("ed25519", "ed25519"), ("rsa", "ps256")):
        if part in name:
            return algorithm
    raise ValueError(f"{file.parent / KEY} is a key of kind {name}: C2PA signs with P-256, P-384, Ed25519 or RSA")


def _make(folder: Path) -> None:
    """An authority and a leaf as the C2PA specification asks for (certificate profile): a self-signed leaf is refused, its
    key may only sign, its purpose is e-mail protection, and it names the authority's key."""
    ec, serialization = (needs(f"cryptography.hazmat.primitives.{name}") for name in ("asymmetric.ec", "serialization"))
    hashes, x509 = needs("cryptography.hazmat.primitives.hashes"), needs("cryptography.x509")
    authority, leaf = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    issuer = _name(x509, "ctm development authority")
    known = x509.SubjectKeyIdentifier.from_public_key
    root = (
        _begun(x509, issuer, issuer, authority)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(x509, key_cert_sign=True, crl_sign=True), critical=True)
        .add_extension(known(authority.public_key()), critical=False)
        .sign(authority, hashes.SHA256())
    )
    end = (
        _begun(x509, _name(x509, "ctm development signer"), issuer, leaf)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(x509, digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([x509.ExtendedKeyUsageOID.EMAIL_PROTECTION]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key()), critical=False)
        .add_extension(known(leaf.public_key()), critical=False)
        .sign(authority, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = leaf.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_whole(folder / AUTHORITY, root.public_bytes(pem))
    _write_secret(folder / KEY, private)
    write_whole(folder / CHAIN, end.public_bytes(pem) + root.public_bytes(pem))


def _write_secret(path: Path, content: bytes) -> None:
    """A new file that only its owner reads."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _name(x509: Any, common: str) -> Any:
    oid = x509.NameOID
    return x509.Name(
        [x509.NameAttribute(oid.ORGANIZATION_NAME, "ctm development"), x509.NameAttribute(oid.COMMON_NAME, common)]
    )


def _begun(x509: Any, subject: Any, issuer: Any, key: Any) -> Any:
    now = datetime.now(timezone.utc)
    return (
        x509.CertificateBuilder(subject_name=subject, issuer_name=issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + timedelta(days=365 * _YEARS))
    )


def _usage(x509: Any, **allowed: bool) -> Any:
    names = (
        "digital_signature",
        "content_commitment",
        "key_encipherment",
        "data_encipherment",
        "key_agreement",
        "key_cert_sign",
        "crl_sign",
        "encipher_only",
        "decipher_only",
    )
    return x509.KeyUsage(**{name: allowed.get(name, False) for name in names})
