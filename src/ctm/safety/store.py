"""What a service keeps: pictures, nonces, reports and the record, in one database. Every change and its entry in the record are
one transaction."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, insert, select

from ctm.foreign.text import plain
from ctm.safety.database import Database
from ctm.safety.head import HeadFailure, check_place, read_head, write_head
from ctm.safety.moderation import Moderation
from ctm.safety.pictures import Picture
from ctm.safety.policy import Retention
from ctm.safety.record import Entry, Record, as_text, canonical, entry_at, last_entry, now
from ctm.safety.schema import nonces, pictures
from ctm.safety.signing import Signer

__all__ = ["Nonce", "Store", "Writing"]


@dataclass(frozen=True)
class Nonce:
    """The nonce of a picture's watermark, with the picture's id and the condition it was made under (values of JSON)."""

    picture: str
    nonce: bytes
    condition: Any


class Writing:
    """One transaction of the store: its connection, and the record. What `note` appends is one with what else is written."""

    def __init__(self, connection: Connection, record: Record) -> None:
        self.connection, self._record = connection, record
        self.last: Entry | None = None

    def note(self, kind: str, body: dict[str, Any], picture: str | None = None, time: str | None = None) -> Entry:
        """Append an entry to the record. picture: the id of the picture that it tells of. time: which the tables have too."""
        self.last = self._record.append(self.connection, kind, body, picture, self.last, time)
        return self.last


class Store(Moderation):
    """The store of a service. Opening it brings the tables to this version.

    url: of SQLAlchemy. signer: signs the record; None for a store that is only read. head: a file that gets the signed head after
    each change. retention: how long pictures are kept (`expire`), and which states' bytes are stored at all.

    Raises ValueError where the record is signed by another key, and where the head file knows a longer or another record: then
    an old database was put back, entries were removed, or the file is another record's head."""

    def __init__(
        self,
        url: str,
        signer: Signer | None = None,
        head: Path | None = None,
        retention: Retention | None = None,
    ) -> None:
        self.database = Database(url, to_read=signer is None)
        self.record = None if signer is None else Record(signer)
        self.head = head
        self.retention = retention or Retention()
        if signer is not None:
            self._check_end(signer)

    def serve(self, made: Sequence[Picture]) -> list[str]:
        """Keep pictures that were screened: passed ones as served, held ones in the queue, blocked ones as blocked. Returns their
        ids once all of it is on the disk: only then may an answer be sent. All of them or none.

        Raises ValueError for an id that is there already, OSError where the database or the head cannot be written."""
        time = as_text(now())
        with self.writing() as writing:
            ids = [picture.id for picture in made]
            taken = writing.connection.execute(select(pictures.c.id).where(pictures.c.id.in_(ids))).first()
            twice = taken.id if taken is not None else next((id for id in ids if ids.count(id) > 1), None)
            if twice is not None:
                raise ValueError(f"there is a picture {twice} already: take a new id")
            for picture in made:
                self._keep(writing, picture, time)
        return [picture.id for picture in made]

    def nonces(self, model: str) -> list[Nonce]:
        """The nonces of all pictures of a model, by the digest that their claims have as model_digest."""
        wanted = select(nonces.c.picture, nonces.c.nonce, nonces.c.condition).where(nonces.c.model == model)
        with self.database.reading() as connection:
            rows = connection.execute(wanted).all()
        return [Nonce(picture, bytes.fromhex(nonce), json.loads(condition)) for picture, nonce, condition in rows]

    def note(self, kind: str, body: dict[str, Any]) -> None:
        """Append one entry that tells of no picture, e.g. that a service began, with which policy and filters."""
        with self.writing() as writing:
            writing.note(kind, body)

    def close(self) -> None:
        """Close the connections to the database."""
        self.database.close()

    def check(self) -> None:
        """Return if a decision can be kept now: the database answers, and it and the head can be written. A head that is behind
        the record, because it could not be written, is written. Raises OSError otherwise."""
        with self.database.reading() as connection:
            last = last_entry(connection)
        for path in (self.head, self.database.path):
            if path is not None:
                check_place(path)
        if self.record is not None and self.head is not None and last is not None:
            self._write_head(self.head, last, self.record.signer)

    @staticmethod
    def _write_head(head: Path, last: Entry, signer: Signer) -> None:
        """Write the head of a record whose newest entry is on the disk. Raises HeadFailure, which says so."""
        try:
            write_head(head, last, signer)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else plain(str(error), 300)
            raise HeadFailure(
                f"what was decided is in the record (entry {last.number}), but {head} cannot be written ({reason}), so its end "
                "is not protected: make room or give permission; the next decision writes the head"
            ) from error

    @contextmanager
    def writing(self) -> Iterator[Writing]:
        """One transaction with its entries in the record. Afterwards the head is written. Raises ValueError for a store that was
        opened without a signer, OSError where the database cannot be written, and HeadFailure where the head cannot: the
        transaction is then on the disk."""
        if self.record is None:
            raise ValueError("this store was opened to be read: open it with the key that signs the record")
        with self.database.writing() as connection:
            writing = Writing(connection, self.record)
            yield writing
        if writing.last is not None and self.head is not None:
            self._write_head(self.head, writing.last, self.record.signer)

    def _keep(self, writing: Writing, picture: Picture, time: str) -> None:
        claim, verdict = canonical(picture.claim), canonical(asdict(picture.verdict))
        stored = getattr(self.retention, picture.state) != 0
        row = {"id": picture.id, "state": picture.state, "png": picture.png if stored else None, "made": time}
        row |= {"sha256": picture.sha256, "claim": claim, "verdict": verdict, "key_id": picture.key_id}
        writing.connection.execute(insert(pictures).values(**row, changed=time, reason=picture.verdict.reason))
        nonce = picture.claim.get("nonce")
        if nonce is not None:
            about = {"nonce": nonce, "model": str(picture.claim.get("model_digest", ""))}
            condition = canonical(picture.claim.get("condition"))
            writing.connection.execute(insert(nonces).values(picture=picture.id, condition=condition, **about))
        body = {"sha256": picture.sha256, "bytes": len(picture.png), "stored": stored, "key": picture.key_id}
        body |= {"claim": picture.claim, "verdict": asdict(picture.verdict)}
        writing.note(picture.state, body, picture.id, time)

    def _check_end(self, signer: Signer) -> None:
        """The record that is there must be this key's, and the head's."""
        head = (
            None if self.head is None or not self.head.exists() else read_head(self.head)
        )  # before the record, which grows
        with self.database.reading() as connection:
            last = last_entry(connection)
            at_head = None if head is None else entry_at(connection, head.count)
        if last is not None and not signer.public.fits(last.signature, last.text.encode()):
            raise ValueError(
                f"the record in {self.database.name} is not signed by the key {signer.public.fingerprint}: put the service's "
                "own keys back, or find what was changed by ctm moderate verify"
            )
        if head is None:
            self._begin_head(last, signer)
            return
        if not head.is_signed_by(signer.public):
            raise ValueError(
                f"{self.head} is the head of another record, or was changed: name another file as head in the policy"
            )
        if at_head is None:
            count = 0 if last is None else last.number
            raise ValueError(
                f"{self.head} knows {head.count} entries of the record, and {self.database.name} has {count}: entries were "
                "removed, or an old database was put back. ctm moderate verify says more. To go on from the shorter record, move "
                "the head away"
            )
        if at_head.hash != head.hash:
            raise ValueError(
                f"entry {head.count} in {self.database.name} is not the one that {self.head} knows: the record was made anew, or "
                "an old database was put back and gone on with. To go on with it, move the head away"
            )
        self._begin_head(last, signer)

    def _begin_head(self, last: Entry | None, signer: Signer) -> None:
        """Write the head if it is older than the record, and find out now whether it can be written."""
        if self.head is not None:
            check_place(self.head)
            if last is not None:
                write_head(self.head, last, signer)
