"""The queue, single pictures, reports and retention."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from ctm.commands.moderate.common import add_by, add_reason, opened, read_only, table, words_of, work_parser
from ctm.console import text_console
from ctm.data.notes import printable
from ctm.files import write_whole
from ctm.terminal.parser import Parser
from ctm.terminal.paths import check_place

__all__ = [
    "delete",
    "delete_parser",
    "expire",
    "expire_parser",
    "list_parser",
    "reject",
    "reject_parser",
    "release",
    "release_parser",
    "reports",
    "reports_parser",
    "show",
    "show_list",
    "show_parser",
]

_STATES = ("held", "served", "released", "rejected", "blocked", "deleted")
_ID = "a picture's id, as list shows it"


def list_parser() -> Parser:
    result = work_parser(
        "list", "List the pictures that wait for a decision, or those in another state.", "--of rejected"
    )
    result.add_argument("--of", type=str, default="held", help=f"the state: {', '.join(_STATES)}")
    return result


def show_parser() -> Parser:
    result = work_parser(
        "show", "Show what is kept of a picture and what was decided; write the picture itself.", "ID --out held.png"
    )
    result.add_argument("id", type=str, help=_ID)
    result.add_argument(
        "--out", type=str, default=None, help="FILE.png to write the picture to, also a held or rejected one"
    )
    return result


def release_parser() -> Parser:
    result = work_parser("release", "Let a held or rejected picture leave.", 'ID --reason "a beach"')
    result.add_argument("id", type=str, help=_ID)
    add_reason(result)
    return result


def reject_parser() -> Parser:
    result = work_parser(
        "reject", "Keep a held picture back, or take down one that was served.", 'ID --reason "not for us"'
    )
    result.add_argument("id", type=str, help=_ID)
    add_reason(result)
    return result


def delete_parser() -> Parser:
    result = work_parser(
        "delete", "Delete a picture's bytes now. Its record stays.", 'ID --reason "asked for by the person"'
    )
    result.add_argument("id", type=str, help=_ID)
    add_reason(result)
    return result


def reports_parser() -> Parser:
    result = work_parser(
        "reports", "List users' open reports, or close one with an answer.", '--close ID --answer "taken down"'
    )
    result.add_argument("--closed", action="store_true", help="closed ones too")
    result.add_argument("--close", type=str, default=None, help="the id of a report to close")
    result.add_argument("--answer", type=str, default=None, help="the answer, with --close")
    add_by(result)
    return result


def expire_parser() -> Parser:
    return work_parser(
        "expire", "Delete pictures and reports that the policy's retention says are too old. Their record stays.", ""
    )


def show_list(settings: Namespace) -> None:
    """Print the pictures in a state, oldest first."""
    if settings.of not in _STATES:
        raise ValueError(f"--of must be one of {', '.join(_STATES)}, got {settings.of!r}")
    with read_only(settings) as (_, store):
        pictures, open_reports = store.listed(settings.of), [report.picture for report in store.reports()]
    if not pictures:
        print(f"no picture is {settings.of}")
        return
    shown = table("picture", "made", "model", "reason", "reports")
    for picture in pictures:
        count = open_reports.count(picture.id)
        shown.add_row(
            picture.id,
            picture.made[:19],
            *map(_shown, (picture.claim.get("model", ""), picture.reason)),
            str(count or ""),
        )
    text_console(wide=True).print(shown)


def show(settings: Namespace) -> None:
    """Print all that is kept of a picture, and write its file."""
    out = None if settings.out is None else Path(settings.out)
    if out is not None:
        check_place(out)
    with read_only(settings) as (_, store):
        picture, history = store.picture(settings.id), store.history(settings.id)
        told = [report for report in store.reports(every=True) if report.picture == picture.id]
    print(f"{picture.id}: {picture.state}{_after(_shown(picture.reason))}")
    print(f"sha256 {picture.sha256}, {'no bytes are kept' if picture.png is None else f'{len(picture.png)} bytes'}")
    print(f"made by {_shown(json.dumps(picture.claim, ensure_ascii=False))}")
    print(
        f"scores {_shown(json.dumps(picture.verdict['scores']))}{', not judged by a filter' if picture.verdict['unseen'] else ''}"
    )
    for entry in history:
        body = {name: entry["body"].get(name) for name in ("by", "reason", "answer")}
        print(f"{entry['time'][:19]} entry {entry['number']}: {_shown(entry['kind'])}{_after(_shown(words_of(body)))}")
    for report in told:
        print(f"report {report.id}, {'open' if report.closed is None else 'closed'}: {_shown(report.words)}")
    if out is not None:
        if picture.png is None:
            raise ValueError(f"the bytes of picture {picture.id} are not kept: leave --out out")
        write_whole(out, picture.png)
        print(f"the picture is in {out}")


def release(settings: Namespace) -> None:
    """Release a picture."""
    with opened(settings) as state:
        state.store.release(settings.id, settings.by, settings.reason or "")
    print(f"{settings.id} is released")


def reject(settings: Namespace) -> None:
    """Reject a picture."""
    with opened(settings) as state:
        state.store.reject(settings.id, settings.by, _reason(settings, "a rejection"))
    print(f"{settings.id} is rejected")


def delete(settings: Namespace) -> None:
    """Delete a picture's bytes."""
    with opened(settings) as state:
        state.store.delete(settings.id, settings.by, _reason(settings, "a deletion"))
    print(f"the bytes of {settings.id} are deleted; its record stays")


def reports(settings: Namespace) -> None:
    """Print reports, or close one."""
    if settings.answer is not None and settings.close is None:
        raise ValueError("--answer belongs to --close ID: give both")
    if settings.close is not None:
        with opened(settings) as state:
            state.store.close_report(settings.close, settings.by, settings.answer or "")
        print(f"report {settings.close} is closed")
        return
    with read_only(settings) as (_, store):
        found = store.reports(every=settings.closed)
    if not found:
        print("no reports" if settings.closed else "no open reports")
        return
    shown = table("report", "picture", "made", "words", "answer")
    for report in found:
        answer = "" if report.closed is None else f"closed {report.closed[:19]} {report.answer}"
        shown.add_row(report.id, report.picture, report.made[:19], _shown(report.words), _shown(answer))
    text_console(wide=True).print(shown)


def expire(settings: Namespace) -> None:
    """Delete what is too old."""
    with opened(settings) as state:
        expired = state.store.expire()
    print(f"deleted {expired.pictures} pictures and {expired.reports} reports; what the record says of them stays")


def _reason(settings: Namespace, what: str) -> str:
    if settings.reason is None:
        raise ValueError(f"{what} needs a reason, which the record keeps: give --reason TEXT")
    return str(settings.reason)


def _after(words: str) -> str:
    return f", {words}" if words else ""


def _shown(text: Any) -> str:
    """A stranger's text on one line, which cannot steer a terminal."""
    return " ".join(printable(str(text)).split())
