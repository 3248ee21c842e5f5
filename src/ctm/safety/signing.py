"""The key that signs the record (Ed25519), in a directory that only its owner reads."""

from __future__ import annotations

import hashlib
import os
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from ctm.files import named_failures

__all__ = ["PublicKey", "Signer", "made_once"]

_PURPOSE = b"ctm record 1\n"  # before what is signed, so that no signature of this key means anything elsewhere


@dataclass(frozen=True)
class PublicKey:
    """The key that tells whether the record is signed by its owner."""

    key: Ed25519PublicKey

    @classmethod
    def load(cls, path: Path) -> PublicKey:
        """The key in a PEM file. Raises ValueError for a file that holds none, OSError for one that cannot be read."""
        try:
            key = load_pem_public_key(path.read_bytes())
        except (ValueError, UnsupportedAlgorithm):
            key = None  # type: ignore[assignment, unused-ignore]
        if not isinstance(key, Ed25519PublicKey):
            raise ValueError(f"{path} holds no public Ed25519 key (PEM): give the record.pub.pem of the service's keys")
        return cls(key)

    @property
    def fingerprint(self) -> str:
        """The first 16 digits of the SHA-256 of the raw key."""
        return hashlib.sha256(self.key.public_bytes(Encoding.Raw, PublicFormat.Raw)).hexdigest()[:16]

    def fits(self, signature: str, content: bytes) -> bool:
        """Whether a signature (hex) is this key's over the content."""
        try:
            self.key.verify(bytes.fromhex(signature), _PURPOSE + content)
        except (InvalidSignature, ValueError):
            return False
        return True


@dataclass(frozen=True)
class Signer:
    """The key that signs, and its public half."""

    key: Ed25519PrivateKey

    @classmethod
    def load_or_create(cls, folder: Path) -> Signer:
        """The key in `folder`/record.pem, made at first with record.pub.pem beside it. Raises ValueError for a file that holds
        no such key, and for two files that do not belong together."""
        made = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        content = made_once(folder / "record.pem", made)
        try:
            key = load_pem_private_key(content, None)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            key = None  # type: ignore[assignment, unused-ignore]
        if not isinstance(key, Ed25519PrivateKey):
            raise ValueError(
                f"{folder / 'record.pem'} holds no Ed25519 key (PEM): put the service's own back from a backup"
            )
        signer, public = cls(key), folder / "record.pub.pem"
        pem = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        if made_once(public, pem, 0o644) != pem:
            raise ValueError(
                f"{public} is not the public half of {folder / 'record.pem'}: put the service's own back from a backup"
            )
        return signer

    @property
    def public(self) -> PublicKey:
        """The public half."""
        return PublicKey(self.key.public_key())

    def sign(self, content: bytes) -> str:
        """The signature over the content, as hex."""
        return self.key.sign(_PURPOSE + content).hex()


def made_once(path: Path, content: bytes, mode: int = 0o600) -> bytes:
    """The content of a file. Where it is absent, `content` becomes its content, whole and with the permissions `mode`; of several
    processes that make it at once, one wins. Raises OSError, which names the file, where it cannot be read or made."""
    if not path.exists():
        with named_failures(path):
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            descriptor, name = tempfile.mkstemp(prefix=".making.", dir=path.parent)
            try:
                with os.fdopen(descriptor, "wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
                os.chmod(name, mode)
                with suppress(FileExistsError):
                    os.link(name, path)
            finally:
                os.unlink(name)
    return path.read_bytes()
