"""`ctm bench matching`: soft, local and global matching, consistency models and the losses beside them, at equal budgets."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from ctm.bench.images import METHODS, Settings, run_images
from ctm.bench.images import STEPS as IMAGE_STEPS
from ctm.bench.mixture import KINDS, Budget, run_mixture
from ctm.bench.mixture import STEPS as JUMPS
from ctm.bench.results import Results
from ctm.commands.common import Parser, command_parser

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
    result.add_argument(
        "--evaluations", type=int, default=10_000, help="mixture: the teacher's evaluations a run may use"
    )
    result.add_argument("--seconds", type=float, default=20.0, help="mixture: processor seconds a run may use")
    result.add_argument("--seeds", type=int, default=3, help="mixture: runs of each kind")
    return result


def run(settings: Any) -> None:
    """Run what is not in the results yet, then print the tables."""
    methods = [name.strip() for name in settings.methods.split(",") if name.strip()]
    unknown = [name for name in methods if name not in METHODS]
    if unknown:
        raise ValueError(f"--methods knows {', '.join(METHODS)}; not {', '.join(unknown)}")
    for name in ("minutes", "count", "evaluations", "seconds", "seeds"):
        if settings[name] <= 0:
            raise ValueError(f"--{name} must be positive, got {settings[name]}")
    torch.manual_seed(0)
    path = Path(settings.out)
    results = Results(path, go_on=settings["continue"])
    console = Console()
    if settings.part != "images":
        budget = Budget(settings.evaluations, settings.seconds)
        run_mixture(results, budget=budget, seeds=settings.seeds, progress=lambda runs: track(runs, "mixture"))
    if settings.part != "mixture":
        about = Settings(settings.data, Path(settings.teacher), path.with_suffix(""), settings.minutes, settings.count)
        run_images(results, about, methods)
    for table in tables(results):
        console.print(table)
    console.print(f"results: {path}", highlight=False, soft_wrap=True)


def tables(results: Results) -> list[Table]:
    """The results as tables, without the halves that were not run."""
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
    table = Table(title=f"Fréchet distance ({entries[0]['data']}, {entries[0]['count']} samples)")
    for column in ("", "steps of training", *(f"{k}" for k in IMAGE_STEPS), *(f"γ=1: {k}" for k in IMAGE_STEPS[1:])):
        table.add_column(column, justify="left" if not column else "right")
    for entry in entries:
        distances = {**{f"1:{k}": v for k, v in entry.get("frechet_gamma_1", {}).items()}, **entry["frechet"]}
        columns = [*map(str, IMAGE_STEPS), *(f"1:{k}" for k in IMAGE_STEPS[1:])]
        values = [f"{distances[key]:.0f}" if key in distances else "" for key in columns]
        if entry["method"] == "teacher":
            table.add_row("real images", "", f"{entry['floor']:.0f}")
            values[0] = f"{distances['35']:.0f} (35)"
        table.add_row(entry["method"], str(entry.get("steps", "")), *values)
    return table
