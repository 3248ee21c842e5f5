"""The queue and its decisions: held pictures, reports, retention. A part of `Store`."""

from __future__ import annotations

import hashlib
import json
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from sqlalchemy import delete, insert, select, update

from ctm.foreign.text import plain
from ctm.safety.database import Database
from ctm.safety.pictures import MAY_BECOME, new_id
from ctm.safety.policy import Retention
from ctm.safety.record import as_text, entries, now
from ctm.safety.schema import pictures, reports

if TYPE_CHECKING:
    from ctm.safety.store import Writing

__all__ = ["Expired", "Kept", "Moderation", "Report"]

_LONGEST = 4000  # characters of a reason or a report


@dataclass(frozen=True)
class Kept:
    """A picture as the store has it. png: None where the bytes were not stored or are deleted. Times are ISO 8601 in UTC."""

    id: str
    state: str
    png: bytes | None = field(repr=False)
    sha256: str
    claim: dict[str, Any]
    verdict: dict[str, Any]
    key_id: str | None
    made: str
    changed: str
    reason: str

    @property
    def may_leave(self) -> bool:
        """Whether the bytes may be given to anyone but a moderator."""
        return self.state in ("served", "released") and self.png is not None


@dataclass(frozen=True)
class Report:
    """What a user reported of a picture. closed: when a moderator answered, None while it is open."""

    id: str
    picture: str
    words: str
    key_id: str | None
    made: str
    closed: str | None
    answer: str


@dataclass(frozen=True)
class Expired:
    """How many pictures and reports `expire` deleted."""

    pictures: int
    reports: int


class Moderation:
    """What moderators and users do with pictures that are there. Each decision and its entry are one transaction."""

    database: Database
    retention: Retention

    def writing(self) -> AbstractContextManager[Writing]:
        """One transaction with its entries in the record."""
        raise NotImplementedError

    def picture(self, id: str) -> Kept:
        """The picture of that id. Raises ValueError for an unknown id."""
        return _kept(self._row(id))

    show = picture

    def history(self, id: str) -> list[dict[str, Any]]:
        """All that the record tells of a picture, oldest first."""
        with self.database.reading() as connection:
            return [json.loads(entry.text) for entry in entries(connection, id)]

    def held(self) -> list[Kept]:
        """The queue: pictures that wait for a decision, oldest first."""
        return self.listed("held")

    def listed(self, state: str) -> list[Kept]:
        """Pictures in a state, without their bytes, oldest first."""
        columns = [column for column in pictures.c if column.name != "png"]
        wanted = select(*columns).where(pictures.c.state == state).order_by(pictures.c.made, pictures.c.id)
        with self.database.reading() as connection:
            return [_kept({**row._mapping, "png": None}) for row in connection.execute(wanted)]

    def release(self, id: str, by: str, reason: str = "") -> None:
        """Let a held or rejected picture leave. Raises ValueError for a picture in another state, or whose bytes are gone."""
        self._decide(id, "released", by, reason)

    def reject(self, id: str, by: str, reason: str) -> None:
        """Keep a held picture back, or take down one that was served or released. Raises ValueError without a reason, and for a
        picture in another state."""
        if not reason.strip():
            raise ValueError("a rejection needs a reason, which the record keeps: give one")
        self._decide(id, "rejected", by, reason)

    def delete(self, id: str, by: str, reason: str) -> None:
        """Delete a picture's bytes now. What the record says of it stays. Raises ValueError as `reject`."""
        if not reason.strip():
            raise ValueError("a deletion needs a reason, which the record keeps: give one")
        self._decide(id, "deleted", by, reason)
        self.database.forget_deleted()

    def report(self, id: str, words: str, key_id: str | None = None) -> str:
        """Keep a user's report of a picture; returns its id. The record keeps the words' digest, so that they can be deleted.
        Raises ValueError for an unknown picture, and for words that are empty or longer than 4,000 characters."""
        words = _text(words, "a report")
        if not words:
            raise ValueError("a report has no words: say what is wrong with the picture")
        self._row(id)
        about = {"id": new_id(), "key_id": key_id}
        with self.writing() as writing:
            time = as_text(now())
            row = {"picture": id, "words": words, "made": time, "closed": None, "answer": ""}
            writing.connection.execute(insert(reports).values(about | row))
            digest = hashlib.sha256(words.encode()).hexdigest()
            writing.note("reported", {"report": about["id"], "words_sha256": digest, "key": key_id}, id, time)
        return str(about["id"])

    def reports(self, every: bool = False) -> list[Report]:
        """Open reports, or every one that is kept, oldest first."""
        wanted = select(reports).order_by(reports.c.made, reports.c.id)
        wanted = wanted if every else wanted.where(reports.c.closed.is_(None))
        with self.database.reading() as connection:
            return [Report(**row._mapping) for row in connection.execute(wanted)]

    def close_report(self, id: str, by: str, answer: str) -> None:
        """Close a report with an answer. Raises ValueError for an unknown or closed report."""
        answer, by = _text(answer, "an answer"), _text(by, "a name")
        with self.writing() as writing:
            found = writing.connection.execute(select(reports).where(reports.c.id == id)) if _is_id(id) else None
            row = None if found is None else found.first()
            if row is None or row.closed is not None:
                raise ValueError(f"there is no open report {plain(id)}: ctm moderate reports lists them")
            time = as_text(now())
            changed = update(reports).where(reports.c.id == id).values(closed=time, answer=answer)
            writing.connection.execute(changed)
            writing.note("report closed", {"report": id, "by": by, "answer": answer}, row.picture, time)

    def expire(self, time: datetime | None = None) -> Expired:
        """Delete the bytes of pictures, and reports, that the retention says are too old by now (or by `time`). What the record
        says of them stays, and it says that they were deleted."""
        time = time or now()
        counts = {"pictures": 0, "reports": 0}
        with self.writing() as writing:
            for state in ("served", "held", "released", "rejected", "blocked"):
                old = self._too_old(time, getattr(self.retention, state))
                wanted = select(pictures.c.id).where(pictures.c.state == state, pictures.c.changed <= old)
                wanted = wanted.where(pictures.c.png.is_not(None))
                for (id,) in writing.connection.execute(wanted.order_by(pictures.c.id)).all():
                    done = as_text(now())
                    gone = {"state": "deleted", "png": None, "changed": done, "reason": "its time was over"}
                    writing.connection.execute(update(pictures).where(pictures.c.id == id).values(gone))
                    writing.note("deleted", {"by": "retention", "reason": gone["reason"], "was": state}, id, done)
                    counts["pictures"] += 1
            old = self._too_old(time, self.retention.reports)
            for row in writing.connection.execute(select(reports).where(reports.c.made <= old)).all():
                writing.connection.execute(delete(reports).where(reports.c.id == row.id))
                writing.note("report deleted", {"report": row.id, "by": "retention"}, row.picture)
                counts["reports"] += 1
        if any(counts.values()):
            self.database.forget_deleted()
        return Expired(**counts)

    def _decide(self, id: str, state: str, by: str, reason: str) -> None:
        by, reason = _text(by, "a name"), _text(reason, "a reason")
        if not _is_id(id):
            raise ValueError(_unknown(id))
        with self.writing() as writing:
            row = writing.connection.execute(select(pictures).where(pictures.c.id == id)).first()
            if row is None:
                raise ValueError(_unknown(id))
            if row.state not in MAY_BECOME[state]:
                raise ValueError(
                    f"picture {id} is {row.state}, and only a picture that is {_or(MAY_BECOME[state])} can be {state}"
                )
            if state == "released" and row.png is None:
                raise ValueError(f"the bytes of picture {id} are not kept, so it cannot be released")
            time = as_text(now())
            values: dict[str, Any] = {"state": state, "changed": time, "reason": reason}
            values |= {"png": None} if state == "deleted" else {}
            writing.connection.execute(update(pictures).where(pictures.c.id == id).values(values))
            writing.note(state, {"by": by, "reason": reason, "was": row.state, "sha256": row.sha256}, id, time)

    def _row(self, id: str) -> dict[str, Any]:
        if not _is_id(id):
            raise ValueError(_unknown(id))
        with self.database.reading() as connection:
            row = connection.execute(select(pictures).where(pictures.c.id == id)).first()
        if row is None:
            raise ValueError(_unknown(id))
        return dict(row._mapping)

    @staticmethod
    def _too_old(time: datetime, days: float | None) -> str:
        """The time at or before which something is too old; an empty text, before which nothing is, for no limit."""
        return "" if days is None else as_text(time - timedelta(days=days))


def _kept(row: dict[str, Any]) -> Kept:
    return Kept(**{**row, "claim": json.loads(row["claim"]), "verdict": json.loads(row["verdict"])})


def _is_id(text: str) -> bool:
    """Whether a text can be an id: no database is asked for anything else."""
    return len(text) <= 64 and text.isascii() and text.isalnum()


def _unknown(id: str) -> str:
    return f"there is no picture {plain(id)!r}: ctm moderate list shows those that wait"


def _or(words: tuple[str, ...]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def _text(words: str, what: str) -> str:
    """The text without surrounding space. Raises ValueError for one that is too long, or that UTF-8 cannot hold."""
    words = words.strip()
    if len(words) > _LONGEST:
        raise ValueError(f"{what} may have {_LONGEST} characters, got {len(words)}: shorten it")
    try:
        words.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{what} holds half a character (a lone surrogate), which no text has") from error
    if "\0" in words:
        raise ValueError(f"{what} holds a zero byte, which no text has")
    return words
