"""Whether the record is whole: what was changed, removed, reordered or inserted, and what cannot be known."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any

from ctm.foreign.text import parse_json, plain
from ctm.safety.head import Head
from ctm.safety.record import BEGINNING, Entry, canonical, digest_of, entries
from ctm.safety.signing import PublicKey
from ctm.safety.store import Store
from ctm.safety.tables import Known, check_tables

__all__ = ["Findings", "exported", "verify", "verify_export"]

_MINUTE = 60.0
_NO_HEAD = (
    "Whether entries were cut off the end, or an old database was put back, cannot be known without a head that is kept "
    "elsewhere (--head FILE)."
)


@dataclass
class Findings:
    """count: entries read; end: hash of the newest; problems: a sentence for each thing that is wrong; notes: what could not be
    known."""

    count: int = 0
    end: str = BEGINNING
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def whole(self) -> bool:
        """Whether nothing wrong was found."""
        return not self.problems


def verify(store: Store, public: PublicKey, head: Head | None = None) -> Findings:
    """What is wrong with the record, with the head, and between the record and the other tables.

    public: the key that must have signed it, best from a copy kept elsewhere. head: the signed head, kept elsewhere; without one
    a note says what cannot be known."""
    with store.database.reading() as connection:
        findings, known = _of_entries(entries(connection), public, head)
        findings.problems += check_tables(connection, known)
    return findings


def verify_export(lines: Iterable[str], public: PublicKey, head: Head | None = None) -> Findings:
    """The same of an exported record (JSON lines), without the other tables. Raises ValueError for a line that is no entry."""
    return _of_entries(map(imported, lines), public, head)[0]


def exported(entry: Entry) -> str:
    """An entry as one line of JSON: its text, hash and signature, and its place."""
    return canonical(asdict(entry))


def imported(line: str) -> Entry:
    """The entry in a line of `exported`. Raises ValueError for any other line."""
    try:
        values = parse_json(line, "a line of the export")
        entry = Entry(**values)
        strings = (entry.text, entry.hash, entry.signature)
        if type(entry.number) is not int or not all(isinstance(each, str) for each in strings):
            raise TypeError
    except TypeError as error:
        raise ValueError(f"a line of the export is no entry of a record: {plain(line, 60)}") from error
    return entry


def _of_entries(all_of_them: Iterable[Entry], public: PublicKey, head: Head | None) -> tuple[Findings, Known]:
    findings, known = Findings(), Known()
    at_head = _walk(all_of_them, public, findings, known, head)
    if head is None:
        findings.notes.append(_NO_HEAD)
    else:
        _check_head(head, at_head, public, findings)
    return findings, known


def _walk(
    all_of_them: Iterable[Entry], public: PublicKey, findings: Findings, known: Known, head: Head | None
) -> str | None:
    """Check every entry and its place. Returns the hash of the entry that the head names, None where it is not there."""
    before, place, sound, at_head, newest = BEGINNING, 0, True, None, ""
    for entry in all_of_them:
        findings.problems += _missing(place + 1, entry.number - 1)
        content, wrong = _content(entry, public)
        if wrong is None and content["number"] != entry.number:
            wrong = (
                f"place {entry.number} of the record holds entry {content['number']}: entries were reordered, or renumbered "
                "after one was removed or inserted"
            )
        gap = entry.number != place + 1
        if wrong is None and sound and not gap and content["previous"] != before:
            wrong = f"entry {entry.number} does not follow the entry before it: one of both was replaced"
        findings.problems += [wrong] if wrong else []
        if wrong is None:
            known.take(content)
            findings.notes += _clock(entry.number, content["time"], newest)
            newest = max(newest, content["time"])
        before = digest_of(entry.text) if isinstance(entry.text, str) else ""
        place, sound = entry.number, wrong is None
        findings.count += 1
        at_head = before if head is not None and entry.number == head.count else at_head
    findings.end = before
    return at_head


def _content(entry: Entry, public: PublicKey) -> tuple[Any, str | None]:
    """The content of an entry, and what is wrong with it by itself."""
    if not all(isinstance(each, str) for each in (entry.text, entry.hash, entry.signature)):
        return None, f"entry {entry.number} was changed: it is no text"
    if digest_of(entry.text) != entry.hash:
        return None, f"entry {entry.number} was changed: its content does not have the hash that stands beside it"
    if not public.fits(entry.signature, entry.text.encode()):
        reason = f"it is not signed by the key {public.fingerprint}, though its hash fits"
        return None, f"entry {entry.number} was changed or inserted: {reason}"
    content = json.loads(entry.text)
    if content.get("picture") != entry.picture:
        beside = plain(entry.picture or "none")
        return None, f"entry {entry.number} was changed: the picture beside it is {beside}, not the one it tells of"
    return content, None


def _clock(number: int, time: str, newest: str) -> list[str]:
    """A note where an entry's time is more than a minute before an earlier entry's. Times are the clock's word; the order of the
    entries does not hang on them."""
    if not newest or _seconds(newest) - _seconds(time) <= _MINUTE:
        return []
    return [
        f"entry {number} was written at {time}, and one before it at {newest}: the clock was set back between them."
    ]


def _seconds(time: str) -> float:
    return datetime.fromisoformat(time.replace("Z", "+00:00")).timestamp()


def _missing(first: int, last: int) -> list[str]:
    if last < first:
        return []
    one = first == last
    return [
        f"entry {first} is missing: it was removed"
        if one
        else f"entries {first} to {last} are missing: they were removed"
    ]


def _check_head(head: Head, at_head: str | None, public: PublicKey, findings: Findings) -> None:
    if not head.is_signed_by(public):
        findings.problems.append(
            f"the head is not signed by the key {public.fingerprint}: it was changed, or the record's key was replaced (the head "
            f"names {plain(head.key)})"
        )
    elif at_head is None and head.count > 0:
        findings.problems.append(
            f"the head knows {head.count} entries, and entry {head.count} is not there (of {findings.count}): entries were cut "
            "off the end, or an old database was put back"
        )
    elif at_head is not None and at_head != head.hash:
        findings.problems.append(f"entry {head.count} is not the one that the head knows: the record was made anew")
    elif findings.count > head.count:
        more = findings.count - head.count
        findings.notes.append(
            f"The head knows the first {head.count} entries. Whether {more} later ones are all there, it cannot tell."
        )
