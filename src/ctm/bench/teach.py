"""`ctm bench teach`: every way to teach a jump, compared at equal seconds on one network."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from jsonargparse import Namespace

from ctm.bench.images import ImageBench
from ctm.bench.lessons import Cell, run_cell
from ctm.bench.mixture import Budget, run_mixture
from ctm.bench.results import Results
from ctm.bench.teach_table import picture, report
from ctm.bench.ways import REFERENCE, chosen
from ctm.console import text_console
from ctm.files import write_whole
from ctm.progress import tracked
from ctm.terminal.options import numbers
from ctm.terminal.parser import Parser, command_parser

__all__ = ["parser", "run"]

_SCREEN = {"minutes": 3.0, "points": 1, "seeds": "0"}
_FINALS = {
    "digits": {"minutes": 15.0, "points": 5, "seeds": "0,1,2"},
    "fashion-mnist": {"minutes": 60.0, "points": 5, "seeds": "0"},
}
_COUNTS = {"digits": 898}
_BEST = f"{REFERENCE},soft-multistep,soft,local"


def parser() -> Parser:
    """The options of the benchmark."""
    result = command_parser(
        "bench teach",
        "Compare the ways to teach a jump at equal processor seconds of one thread. screen: all ways, against the exact flow of "
        "a Gaussian mixture and on digits, three minutes each. finals: the plain reference and chosen ways on images, by curves "
        "of the Fréchet distance over EfficientNet-Lite0. Each finished cell is added to the results file; the same command with "
        "--continue goes on, also in the middle of a cell.",
        "ctm bench teach --part finals --data digits --ways reference,soft-multistep --seeds 0,1 --continue",
    )
    add = result.add_argument
    add(
        "--part", choices=["mixture", "digits", "screen", "finals"], default="screen", help="screen: mixture and digits"
    )
    add("--data", default="digits", help="finals: the set, whose recipe NAME-ctm.yaml is used")
    add("--teacher", default=None, help="model or run directory; unset: models/DATA-teacher")
    add("--ways", default=None, help="which, by name, with commas; all: each with its default settings, and so unset")
    add("--seeds", default=None, help="with commas; unset: 0, and 0,1,2 for mixture and the finals on digits")
    add("--minutes", type=float, default=None, help="processor minutes of a cell; unset: 3 (digits), finals 15, or 60")
    add("--count", type=int, default=None, help="samples for each distance; unset: 898 on digits, else 2,500")
    add("--evaluations", type=int, default=3_000, help="mixture: the teacher's evaluations a run may use")
    add("--seconds", type=float, default=20.0, help="mixture: processor seconds a run may use")
    add("--out", default="runs/bench/teach.json", help="results file; cells lie in a folder beside it")
    add("--continue", action="store_true", help="go on with a results file that exists")
    add("--merge", default=None, help="take the entries of this other results file into --out")
    add(
        "--show",
        action="store_true",
        help="measure nothing: print the tables of --out in Markdown and draw its picture",
    )
    return result


def run(settings: Namespace) -> None:
    """Run what the results do not hold yet, then print the tables and draw the picture."""
    for name in ("minutes", "count", "evaluations", "seconds"):
        if settings[name] is not None and settings[name] <= 0:
            raise ValueError(f"--{name} must be positive, got {settings[name]}")
    path = Path(settings.out)
    if settings.show and not path.is_file():
        raise ValueError(f"--show shows the results in --out, and there is no {path}")
    results = Results(path, go_on=settings["continue"] or settings.show or settings.merge is not None)
    if settings.merge is not None:
        results.merge(json.loads(Path(settings.merge).read_text(encoding="utf-8")))
    elif not settings.show:
        torch.set_num_threads(1)
        _measure(results, settings)
    console = text_console(wide=True)
    for line in report(results.entries):
        console.print(line, soft_wrap=True)
    drawn = picture(results.entries)
    if drawn is not None:
        write_whole(path.with_suffix(".png"), drawn)
    console.print(f"results: {path}" + ("" if drawn is None else f" and {path.with_suffix('.png').name}"))


def _measure(results: Results, settings: Namespace) -> None:
    """The parts that are asked for."""
    torch.manual_seed(0)
    if settings.part in ("mixture", "screen"):
        ways = [way for way in chosen(settings.ways or "all", reference=True) if way != REFERENCE]
        seeds = numbers(settings.seeds or "0,1,2", int, "--seeds")
        budget = Budget(settings.evaluations, settings.seconds)
        run_mixture(
            results, ways, budget=budget, seeds=seeds, progress=lambda runs: tracked(runs, "mixture", unit="runs")
        )
    if settings.part in ("digits", "screen"):
        _images(results, settings, "digits", settings.ways or "all", _SCREEN)
    if settings.part == "finals":
        usual = _FINALS.get(settings.data, _FINALS["fashion-mnist"])
        _images(results, settings, settings.data, settings.ways or _BEST, usual)


def _images(results: Results, settings: Namespace, data: str, ways: str, usual: dict[str, object]) -> None:
    """Cells on images, seed by seed, so that a run cut short has all ways with fewer seeds."""
    seeds: Sequence[int] = numbers(settings.seeds or str(usual["seeds"]), int, "--seeds")
    minutes = settings.minutes or float(str(usual["minutes"]))
    names = chosen(ways, reference=True)
    cells = [Cell(data, way, minutes, seed, int(str(usual["points"]))) for seed in seeds for way in names]
    left = [cell for cell in cells if cell.name not in results.entries]
    teacher = Path(settings.teacher or f"models/{data}-teacher")
    base = f"images/{data}/teacher"
    if not left and base in results.entries:
        return
    bench = ImageBench(data, teacher, settings.count or _COUNTS.get(data, 2500))
    about = {"part": "images", "data": data, "protocol": bench.protocol}
    kept = results.entries.get(base)
    if kept is None:
        results.add(base, {**about, "way": "teacher", **bench.of_teacher()})
    elif kept["protocol"] != bench.protocol:
        raise ValueError(
            f"{results.path} was measured by {kept['protocol']}, now it would be {bench.protocol}: name another --out"
        )
    console = text_console(stderr=True)
    for cell in tracked(left, f"cells of {data}", unit="cells"):
        runs = results.path.with_suffix("")
        results.add(
            cell.name, run_cell(cell, bench, teacher, runs, seen=lambda line: console.print(line, markup=False))
        )
