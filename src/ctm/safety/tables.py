"""The other tables against the record: every picture, nonce, report and key is as the record tells."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, select

from ctm.safety.record import canonical
from ctm.safety.schema import api_keys, nonces, pictures, reports

__all__ = ["Known", "check_tables"]

_STATES = ("served", "held", "released", "rejected", "blocked", "deleted")


@dataclass
class Known:
    """What the entries tell in the end: the first entry of each picture, its newest state with time and reason, each key, and
    each report that is not deleted, with its answer if it is closed."""

    first: dict[str, dict[str, Any]] = field(default_factory=dict)
    state: dict[str, tuple[str, str, str]] = field(default_factory=dict)
    keys: dict[str, dict[str, Any]] = field(default_factory=dict)
    revoked: dict[str, str] = field(default_factory=dict)
    reports: dict[str, dict[str, Any]] = field(default_factory=dict)

    def take(self, content: dict[str, Any]) -> None:
        """Add what one entry tells."""
        kind, body, picture, time = content["kind"], content["body"], content.get("picture"), content["time"]
        if picture is not None and kind in _STATES:
            if "claim" in body:  # a decision has none, and is the first where the entry before it was removed
                self.first.setdefault(picture, {**body, "number": content["number"], "time": time})
            reason = body["verdict"]["reason"] if "claim" in body else body["reason"]
            self.state[picture] = (kind, time, reason)
        if kind == "key created":
            self.keys[body["key"]] = {**body, "time": time}
        if kind == "key revoked":
            self.revoked[body["key"]] = time
        if kind == "reported":
            self.reports[body["report"]] = {**body, "picture": picture, "time": time}
        if kind == "report closed" and body["report"] in self.reports:
            self.reports[body["report"]] |= {"answer": body["answer"], "closed": time}
        if kind == "report deleted":
            self.reports.pop(body["report"], None)


def check_tables(connection: Connection, known: Known) -> list[str]:
    """A sentence for each difference between the tables and the record."""
    return [*_pictures(connection, known), *_reports(connection, known), *_keys(connection, known)]


def _pictures(connection: Connection, known: Known) -> list[str]:
    wrong, there = [], set()
    marks = {row.picture: row for row in connection.execute(select(nonces))}
    rows = connection.execution_options(yield_per=100).execute(
        select(pictures).order_by(pictures.c.made, pictures.c.id)
    )
    for row in rows:
        there.add(row.id)
        first = known.first.get(row.id)
        if first is None:
            wrong.append(f"the record does not tell of picture {row.id}, which is in the database")
        else:
            wrong += _picture(row, first, known.state[row.id], marks.get(row.id))
    wrong += [
        f"the record does not tell of picture {id}, which has a nonce"
        for id in marks
        if id not in there | known.first.keys()
    ]
    gone = [id for id in known.first if id not in there]
    return wrong + [
        f"picture {id}, of which entry {known.first[id]['number']} tells, is not in the database" for id in gone
    ]


def _picture(row: Any, first: dict[str, Any], newest: tuple[str, str, str], mark: Any) -> list[str]:
    wrong = []
    state, changed, reason = newest
    if (row.made, row.changed) != (first["time"], changed):
        wrong.append(
            f"the times of picture {row.id} were changed: they decide when it is deleted, and are not the record's"
        )
    if row.reason != reason:
        wrong.append(f"the reason for what picture {row.id} is was changed: it is not the one in the record")
    if row.state != state:
        wrong.append(f"picture {row.id} is {row.state} in the database, and {state} by the record")
    if row.png is not None and not (
        isinstance(row.png, bytes) and hashlib.sha256(row.png).hexdigest() == first["sha256"]
    ):
        wrong.append(f"the bytes of picture {row.id} were changed: they do not have the hash in the record")
    if row.png is None and first["stored"] and state != "deleted":
        wrong.append(f"the bytes of picture {row.id} are gone, and the record does not say that they were deleted")
    kept = (row.sha256, row.claim, row.verdict, row.key_id)
    told = (first["sha256"], canonical(first["claim"]), canonical(first["verdict"]), first["key"])
    if kept != told:
        wrong.append(f"what the database says of how picture {row.id} was made is not what the record says")
    if row.png is not None and (state == "deleted" or not first["stored"]):
        wrong.append(f"the bytes of picture {row.id} are there, and by the record they are not kept")
    claim = first["claim"]
    marked = None if mark is None else (mark.nonce, mark.model, mark.condition)
    known = (claim.get("nonce"), str(claim.get("model_digest", "")), canonical(claim.get("condition")))
    if marked != (None if known[0] is None else known):
        wrong.append(f"the nonce of picture {row.id}, its model or its condition are not those in the record")
    return wrong


def _reports(connection: Connection, known: Known) -> list[str]:
    wrong, there = [], set()
    for row in connection.execute(select(reports)):
        there.add(row.id)
        told = known.reports.get(row.id)
        if told is None:
            wrong.append(f"the record does not tell of the report {row.id}, or says that it was deleted")
            continue
        digest = hashlib.sha256(str(row.words).encode("utf-8", "surrogatepass")).hexdigest()
        kept = (digest, row.picture, row.key_id, row.made)
        if kept != (told["words_sha256"], told["picture"], told["key"], told["time"]):
            wrong.append(
                f"the report {row.id} was changed: its words, picture, key or time are not those in the record"
            )
        if (row.closed, None if row.closed is None else row.answer) != (told.get("closed"), told.get("answer")):
            wrong.append(f"whether the report {row.id} is closed, or its answer, is not as the record says")
    return wrong + [
        f"the report {id}, of which the record tells, is not in the database" for id in known.reports if id not in there
    ]


def _keys(connection: Connection, known: Known) -> list[str]:
    wrong, there = [], set()
    for row in connection.execute(select(api_keys)):
        there.add(row.id)
        told = known.keys.get(row.id)
        if told is None:
            wrong.append(f"the record does not tell of the API key {row.id}, which is in the database")
        elif [row.name, row.role, row.rate, row.digest, row.created] != [
            told["name"],
            told["role"],
            canonical(told["rate"]),
            told["digest"],
            told["time"],
        ]:
            wrong.append(
                f"the API key {row.id} was changed: its name, role, limits, digest or time are not those in the record"
            )
        elif row.revoked != known.revoked.get(row.id):
            is_not = "" if row.revoked else "not "
            wrong.append(
                f"the API key {row.id} is {is_not}revoked in the database, unlike in the record, or at another time"
            )
    return wrong + [
        f"the API key {id}, of which the record tells, is not in the database" for id in known.keys if id not in there
    ]
