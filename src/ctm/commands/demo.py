"""`ctm demo`: a teacher and a CTM of real digits, trained and compared, and a report with pictures."""

from __future__ import annotations

from pathlib import Path

from jsonargparse import Namespace

from ctm.demo import run_demo
from ctm.terminal.parser import Parser, command_parser
from ctm.terminal.paths import check_place

__all__ = ["parser", "run"]


def parser() -> Parser:
    result = command_parser(
        "demo",
        "Train a diffusion teacher and a CTM on the shipped 8×8 digits (about five minutes on two cores), compare them at "
        "1, 2, 4 and 8 steps, and write report.html. Run again after Ctrl-C to go on.",
        "ctm demo --out runs/demo",
    )
    result.add_argument("--out", type=str, default="runs/demo", help="where teacher/, student/ and report.html go")
    return result


def run(settings: Namespace) -> None:
    out = Path(settings.out)
    check_place(out / "report.html")
    run_demo(out)
