"""The record: checked, and exported."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import Namespace

from ctm.commands.moderate.common import read_only, work_parser
from ctm.data.notes import printable
from ctm.files import whole_file
from ctm.terminal.parser import Parser
from ctm.terminal.paths import check_place

if TYPE_CHECKING:
    from ctm.safety import Findings

__all__ = ["export", "export_parser", "verify_parser", "verify_record"]

_MOST = 20  # findings that are printed
_LONGEST = 16 << 20  # bytes of a line


def verify_parser() -> Parser:
    result = work_parser(
        "verify",
        "Check the record: name entries that were changed, removed, reordered or inserted, and pictures and keys that are not as "
        "the record says. Exit code 2 if anything is wrong.",
        "--head /mnt/elsewhere/head.json",
    )
    add = result.add_argument
    add(
        "--head",
        type=str,
        default=None,
        help="a head of the record that was kept elsewhere: shows whether the end is there",
    )
    add(
        "--public",
        type=str,
        default=None,
        help="a copy of record.pub.pem kept elsewhere (default: the one in the state)",
    )
    add("--export", type=str, default=None, help="check this exported file instead of the database")
    return result


def export_parser() -> Parser:
    result = work_parser(
        "export",
        "Write the record as JSON lines: each entry as it was signed, with its hash and signature. Pictures are in it by hash.",
        "--out record.jsonl",
    )
    result.add_argument("--out", type=str, default=None, help="a file (default: the output)")
    return result


def verify_record(settings: Namespace) -> None:
    """Print what is wrong with the record, or that nothing is. Raises ValueError if anything is."""
    from ctm.safety.head import read_head
    from ctm.safety.signing import PublicKey

    head = None if settings.head is None else read_head(Path(settings.head))
    if settings.export is not None:
        from ctm.safety.verification import verify_export

        key = Path(settings.public or Path(settings.state) / "keys" / "record.pub.pem")
        findings = verify_export(_lines(Path(settings.export)), PublicKey.load(key), head)
    else:
        from ctm.safety.verification import verify

        with read_only(settings) as (folder, store):
            key = Path(settings.public or folder / "keys" / "record.pub.pem")
            findings = verify(store, PublicKey.load(key), head)
    _tell(findings, key, "the exported record" if settings.export else "the record")


def _lines(path: Path) -> Iterator[str]:
    """The lines of an exported record. Raises ValueError for one of more than 16 MB, and for what is no text in UTF-8."""
    with path.open("rb") as file:
        number = 0
        while line := file.readline(_LONGEST + 1):
            number += 1
            if len(line) > _LONGEST:
                raise ValueError(f"{path}, line {number} is longer than {_LONGEST >> 20} MB, more than an entry has")
            try:
                yield line.decode()
            except UnicodeDecodeError as error:
                raise ValueError(f"{path}, line {number} is no text in UTF-8") from error


def _tell(findings: Findings, key: Path, what: str) -> None:
    for line in [*findings.problems[:_MOST], *findings.notes]:
        print(printable(line))
    count = len(findings.problems)
    if count > _MOST:
        print(f"… and {count - _MOST} more")
    if count:
        raise ValueError(f"{what} is not whole: {count} {'thing is' if count == 1 else 'things are'} wrong")
    print(f"{findings.count} entries, each unchanged, in its place and signed by the key in {key}")
    print(f"the newest has the hash {findings.end}")


def export(settings: Namespace) -> None:
    """Write the record's entries, one line each."""
    from ctm.safety.record import entries
    from ctm.safety.verification import exported

    out = None if settings.out is None else Path(settings.out)
    if out is not None:
        check_place(out)
    count = 0
    with read_only(settings) as (_, store), store.database.reading() as connection:
        if out is None:
            for entry in entries(connection):
                sys.stdout.write(exported(entry) + "\n")
            return
        with whole_file(out) as temporary, temporary.open("w", encoding="utf-8") as file:
            for entry in entries(connection):
                file.write(exported(entry) + "\n")
                count += 1
    print(f"{count} entries in {out}")
