"""`ctm bench evaluate`: the share of an evaluation's time that is spent in the generator and the feature networks."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from rich.table import Table

from ctm.bench.results import Results
from ctm.console import text_console
from ctm.evaluation.passes import Processes
from ctm.evaluation.plans import make_plans, subject_of
from ctm.evaluation.protocol import environment
from ctm.evaluation.report import write_result
from ctm.evaluation.run import evaluate_plans, make_judge
from ctm.models import load_model
from ctm.terminal.options import check_steps, numbers
from ctm.terminal.parser import Parser, command_parser

__all__ = ["measure_shares", "parser", "run"]


def parser() -> Parser:
    """The options of the benchmark."""
    result = command_parser(
        "bench evaluate",
        "Evaluate a model and print the share of the time that goes into its network and the feature networks; the rest is sums, "
        "metrics, pictures and files. Looking at the data is not counted: it is done once for all rows.",
        "ctm bench evaluate --model models/fashion-mnist-ctm --data fashion-mnist --count 10000",
    )
    result.add_argument(
        "--model", type=str, default="models/fashion-mnist-ctm", help="model directory, run directory or hub id"
    )
    result.add_argument("--teacher", type=str, default=None, help="its teacher, a row more: 18 levels of Heun's method")
    result.add_argument("--data", type=str, default="fashion-mnist", help="as for ctm evaluate")
    result.add_argument("--features", type=str, default="efficientnet", help="feature network")
    result.add_argument(
        "--steps", type=str, default="1,2,4", help="jumps, one row for each: as ctm evaluate by default"
    )
    result.add_argument("--count", type=int, default=10_000, help="samples of each row")
    result.add_argument("--out", type=str, default="runs/bench/evaluate.json", help="results file")
    result.add_argument("--continue", action="store_true", help="add to a results file that exists")
    return result


def measure_shares(
    model: str, data: str, features: str, steps: list[int], count: int, teacher: str | None = None
) -> dict[str, Any]:
    """Where the time of an evaluation goes. seconds: by stage, over all rows. total: wall-clock seconds from the first
    sample to the last file. share: the part of total in the generator and the feature networks."""
    subject = subject_of("model", model, load_model(model))
    channels, size, _ = subject.model.shape
    plans = make_plans(subject, steps=steps)
    if teacher is not None:
        plans += make_plans(subject_of("teacher", teacher, load_model(teacher)), steps=None)
    processes = Processes()
    judge = make_judge(data, size=size, channels=channels, features=features, images=count, processes=processes)
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        rows = evaluate_plans(judge, plans, Path(folder))
        about = environment(processes.device, processes.count)
        write_result(Path(folder), judge.protocol, about, judge.reference, rows)
        total = time.perf_counter() - started
    seconds = {stage: sum(row.seconds[stage] for row in rows) for stage in rows[0].seconds}
    share = (seconds["generator"] + seconds["features"]) / total
    return {"seconds": seconds, "total": total, "share": share}


def run(settings: Namespace) -> None:
    """Measure, keep the results, print them."""
    results = Results(Path(settings.out), go_on=settings["continue"])
    steps = numbers(settings.steps, int, "--steps")
    check_steps(steps)
    found = measure_shares(settings.model, settings.data, settings.features, steps, settings.count, settings.teacher)
    asked = {name: settings[name] for name in ("model", "teacher", "data", "features", "steps", "count")}
    results.add(
        f"{settings.model}/{settings.features}/{settings.count}/{settings.steps}{'/teacher' if settings.teacher else ''}",
        asked | found,
    )
    table = Table("", "seconds", "share")
    for stage, seconds in found["seconds"].items():
        table.add_row(stage, f"{seconds:.2f}", f"{seconds / found['total']:.1%}")
    table.add_row("all", f"{found['total']:.2f}", "")
    console = text_console()
    console.print(table)
    console.print(f"in the generator and the feature networks: {found['share']:.1%}; results: {settings.out}")
