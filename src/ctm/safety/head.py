"""The head of the record in a file of its own: a signed (count, hash). Kept elsewhere, it shows that entries were cut off the end
or that an old database was put back."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from ctm.files import named_failures, write_whole
from ctm.foreign.text import read_json
from ctm.safety.record import Entry, canonical
from ctm.safety.signing import PublicKey, Signer

__all__ = ["Head", "HeadFailure", "check_place", "read_head", "write_head"]

_PROBE = 1 << 16  # bytes that a place must take: more than a head has, and than SQLite needs beside a file to read it


class HeadFailure(OSError):
    """The head cannot be written, though what it should know is in the record."""


@dataclass(frozen=True)
class Head:
    """count: number of entries; hash: of the newest; key: fingerprint of the key; signature: over the three."""

    count: int
    hash: str
    key: str
    signature: str

    def is_signed_by(self, public: PublicKey) -> bool:
        """Whether the signature is this key's."""
        return public.fits(self.signature, _content(self.count, self.hash, self.key))


def write_head(path: Path, entry: Entry, signer: Signer) -> None:
    """Write the head whole, unless the file has a newer one. Raises OSError, which names the file, and ValueError where the file
    holds something else or the head of another record."""
    key = signer.public.fingerprint
    head = Head(entry.number, entry.hash, key, signer.sign(_content(entry.number, entry.hash, key)))
    path.parent.mkdir(parents=True, exist_ok=True)
    with _alone(path):
        present = read_head(path) if path.exists() else None
        if present is not None and not present.is_signed_by(signer.public):
            raise ValueError(
                f"{path} is the head of another record, or was changed: name another file as head in the policy"
            )
        if present is None or present.count < head.count:
            write_whole(path, (json.dumps(asdict(head)) + "\n").encode())


def check_place(path: Path) -> None:
    """Raises OSError, which names the file, where it could not be written anew: without permission, or on a full disk."""
    with named_failures(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(prefix=f".{path.name}.", dir=path.parent) as file:
            file.write(bytes(_PROBE))
            file.flush()
            os.fsync(file.fileno())


def read_head(path: Path) -> Head:
    """The head in a file. Raises ValueError for a file that holds none, OSError for one that cannot be read."""
    values = read_json(path)
    names = {"count": int, "hash": str, "key": str, "signature": str}
    if not isinstance(values, dict) or any(type(values.get(name)) is not kind for name, kind in names.items()):
        raise ValueError(f"{path} is no head of a record: it has a count, a hash, a key and a signature")
    return Head(**{name: values[name] for name in names})


def _content(count: int, digest: str, key: str) -> bytes:
    return canonical({"head": [count, digest, key]}).encode()


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Meanwhile no other writer of this head: a lock on a file beside it."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    descriptor = os.open(path.with_name(f".{path.name}.lock"), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
