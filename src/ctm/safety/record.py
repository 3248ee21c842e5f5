"""The record: an append-only list of what was decided, each entry chained to the one before (SHA-256) and signed (Ed25519)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from sqlalchemy import Connection, insert, select

from ctm.safety.schema import record
from ctm.safety.signing import Signer

__all__ = ["BEGINNING", "Entry", "Record", "as_text", "canonical", "now"]

BEGINNING = "0" * 64  # what the first entry is chained to
_CHUNK = 1000


@dataclass(frozen=True)
class Entry:
    """One entry as it is stored. text: canonical JSON of number, previous (the hash of the entry before), time, kind and body;
    hash: SHA-256 of the text (hex); signature: over the text (hex)."""

    number: int
    text: str
    hash: str
    signature: str
    picture: str | None


class Record:
    """Appends to the record of a database.

    signer: signs each entry. Concurrent writers cannot fork the chain: `append` takes a transaction of `Database.writing`, which
    is alone among writers."""

    def __init__(self, signer: Signer) -> None:
        self.signer = signer

    def append(
        self,
        connection: Connection,
        kind: str,
        body: dict[str, Any],
        picture: str | None = None,
        last: Entry | None = None,
        time: str | None = None,
    ) -> Entry:
        """Write one entry in the caller's transaction. body: values of JSON, numbers finite. picture: the id of the picture that
        it tells of. last: the newest entry, where this transaction wrote it; None reads it. time: as `as_text` writes it; None
        for now. Raises ValueError for another body."""
        last = last or last_entry(connection)
        number, previous = (1, BEGINNING) if last is None else (last.number + 1, last.hash)
        about = {"number": number, "previous": previous, "time": time or as_text(now()), "kind": kind, "body": body}
        text = canonical(about if picture is None else {**about, "picture": picture})
        entry = Entry(number, text, digest_of(text), self.signer.sign(text.encode()), picture)
        row = {"number": number, "entry": text, "hash": entry.hash, "signature": entry.signature, "picture": picture}
        connection.execute(insert(record).values(row))
        return entry


def last_entry(connection: Connection) -> Entry | None:
    """The newest entry, None for an empty record."""
    row = connection.execute(select(record).order_by(record.c.number.desc()).limit(1)).first()
    return None if row is None else Entry(*row)


def entry_at(connection: Connection, number: int) -> Entry | None:
    """The entry at a place, None where there is none."""
    row = connection.execute(select(record).where(record.c.number == number)).first()
    return None if row is None else Entry(*row)


def entries(connection: Connection, picture: str | None = None) -> Iterator[Entry]:
    """All entries by their place, or those of one picture."""
    wanted = select(record).order_by(record.c.number)
    wanted = wanted if picture is None else wanted.where(record.c.picture == picture)
    for row in connection.execution_options(yield_per=_CHUNK).execute(wanted):
        yield Entry(*row)


def canonical(value: Any) -> str:
    """A value as JSON in its one form: names sorted, no spaces. Raises ValueError for NaN, infinities and other types."""
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    except TypeError as error:
        raise ValueError(f"the record holds values of JSON only: {error}") from error


def digest_of(text: str) -> str:
    """SHA-256 of an entry's text, as hex."""
    return hashlib.sha256(text.encode()).hexdigest()


def now() -> datetime:
    """The time in UTC."""
    return datetime.now(timezone.utc)


def as_text(time: datetime) -> str:
    """A time as the database and the record write it: 2026-01-31T12:00:00.000000Z, whose order is the order of the text."""
    return time.astimezone(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
