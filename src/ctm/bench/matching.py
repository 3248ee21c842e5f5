"""`ctm bench matching`: soft, local and global matching, consistency models and the other losses, compared at equal budgets."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace
from rich.table import Table

from ctm.bench.images import METHODS, Settings, run_images
from ctm.bench.images import STEPS as IMAGE_STEPS
from ctm.bench.mixture import KINDS, Budget, run_mixture
from ctm.bench.mixture import STEPS as JUMPS
from ctm.bench.results import Results
from ctm.console import text_console
from ctm.progress import tracked
from ctm.terminal.parser import Parser, command_parser

__all__ = ["parser", "run", "tables"]


def parser() -> Parser:
    """The options of the benchmark."""
    result = command_parser(
        "bench matching",
        "Compare soft, local and global matching, consistency models, with and without denoising score matching: against the "
        "exact flow of a Gaussian mixture (two budgets, several seeds), and on real images by Fréchet distance over "
        "EfficientNet-Lite0. Each finished run is added to the results file; --continue goes on with it.",
        "ctm bench matching --teacher runs/fashion-mnist-teacher --out runs/bench/matching.json",
    )
    result.add_argument("--part", choices=["mixture", "images", "both"], default="both", help="which half to run")
    result.add_argument(
        "--out", default="runs/bench/matching.json", help="results file; runs lie in a folder beside it"
    )
    result.add_argument("--continue", action="store_true", help="go on with a results file that exists")
    result.add_argument("--data", default="fashion-mnist", help="images: the set whose shipped recipes are compared")
    result.add_argument("--teacher", default="models/fashion-mnist-teacher", help="images: model or run directory")
    result.add_argument("--methods", default=",".join(METHODS), help="images: which, by name, with commas")
    result.add_argument(
        "--minutes", type=float, default=12.0, help="images: processor minutes of training for each method"
    )
    result.add_argument("--count", type=int, default=5000, help="images: samples for each distance")
    result.add_argument("--image_seeds", type=int, default=1, help="images: runs of each method")
    result.add_argument(
        "--evaluations", type=int, default=10_000, help="mixture: the teacher's evaluations a run may use"
    )
    result.add_argument("--seconds", type=float, default=20.0, help="mixture: processor seconds a run may use")
    result.add_argument("--seeds", type=int, default=3, help="mixture: runs of each kind")
    return result


def run(settings: Namespace) -> None:
    """Run what the results do not hold yet, then print the tables."""
    methods = [name.strip() for name in settings.methods.split(",") if name.strip()]
    unknown = [name for name in methods if name not in METHODS]
    if unknown:
        raise ValueError(f"--methods knows {', '.join(METHODS)}; not {', '.join(unknown)}")
    for name in ("minutes", "count", "image_seeds", "evaluations", "seconds", "seeds"):
        if settings[name] <= 0:
            raise ValueError(f"--{name} must be positive, got {settings[name]}")
    torch.manual_seed(0)
    path = Path(settings.out)
    results = Results(path, go_on=settings["continue"])
    console = text_console(wide=True)
    if settings.part != "images":
        budget = Budget(settings.evaluations, settings.seconds)
        run_mixture(
            results, budget=budget, seeds=settings.seeds, progress=lambda runs: tracked(runs, "mixture", unit="runs")
        )
    if settings.part != "mixture":
        place, teacher = path.with_suffix(""), Path(settings.teacher)
        options = {"minutes": settings.minutes, "count": settings.count, "seeds": settings.image_seeds}
        about = Settings(settings.data, teacher, place, **options)
        run_images(results, about, methods)
    for table in tables(results):
        console.print(table)
    console.print(f"results: {path}")


def tables(results: Results) -> list[Table]:
    """The results as tables. A part that was not run has none."""
    mixture = [entry for entry in results.entries.values() if entry["part"] == "mixture"]
    images = [entry for entry in results.entries.values() if entry["part"] == "images"]
    found = []
    if mixture:
        found += [_mixture_table(mixture, budget) for budget in ("equal_evaluations", "equal_seconds")]
    if images:
        found.append(_image_table(images))
    return found


def _spread(values: Iterable[float]) -> str:
    """Mean ± largest deviation, in per cent."""
    listed = [100 * value for value in values]
    mean = statistics.fmean(listed)
    return f"{mean:.1f} ± {max(abs(value - mean) for value in listed):.1f}"


def _mixture_table(entries: list[dict[str, Any]], budget: str) -> Table:
    about = entries[0]["budget"]
    limit = f"{about['evaluations']} evaluations" if budget == "equal_evaluations" else f"{about['seconds']:g} s"
    table = Table(title=f"Error against the exact flow, % of the data's deviation; {limit} each")
    for column in ("matching", "DSM", "steps", *(f"{jumps} jumps" for jumps in JUMPS), "denoiser"):
        table.add_column(column, justify="left" if column in ("matching", "DSM") else "right")
    for kind in KINDS:
        for dsm in (True, False):
            rows = [e[budget] for e in entries if e["kind"] == kind and e["dsm"] == dsm]
            if rows:
                errors = [_spread(row["errors"][str(k)] for row in rows) for k in (*JUMPS, "denoiser")]
                steps = statistics.fmean(row["steps"] for row in rows)
                table.add_row(kind, "yes" if dsm else "no", f"{steps:.0f}", *errors)
    return table


def _image_table(entries: list[dict[str, Any]]) -> Table:
    columns = [*map(str, IMAGE_STEPS), *(f"γ=1: {k}" for k in IMAGE_STEPS[1:])]
    table = Table(title=f"Fréchet distance ({entries[0]['data']}, {entries[0]['count']} samples)")
    table.add_column("", no_wrap=True)
    for column in ("steps", *columns):
        table.add_column(column, justify="right")
    for method in dict.fromkeys(entry["method"] for entry in entries):
        runs = [entry for entry in entries if entry["method"] == method]
        if method == "teacher":
            table.add_row("real images", "", f"{runs[0]['floor']:.0f}")
            table.add_row(method, "", f"{runs[0]['frechet']['35']:.0f} (35)")
            continue
        of_runs = [entry["frechet"] | {f"γ=1: {k}": v for k, v in entry["frechet_gamma_1"].items()} for entry in runs]
        values = [_distance([found[key] for found in of_runs if key in found]) for key in columns]
        table.add_row(method, str(runs[0]["steps"]), *values)
    return table


def _distance(values: list[float]) -> str:
    """Mean of the seeds ± largest deviation."""
    if not values:
        return ""
    mean = statistics.fmean(values)
    return f"{mean:.0f}" + (f" ± {max(abs(value - mean) for value in values):.0f}" if len(values) > 1 else "")
