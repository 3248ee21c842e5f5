"""`ctm bench gpu`: one command that says whether a GPU computes what a CPU does, waits for nothing, and how fast it is."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace
from rich.table import Table

from ctm.bench.gpu_parts import PARTS, Bench
from ctm.bench.gpu_reference import reference
from ctm.bench.learners import plain_module
from ctm.bench.results import Results
from ctm.console import text_console
from ctm.terminal.options import usable_device
from ctm.terminal.parser import Parser, command_parser

__all__ = ["failures", "parser", "run", "table"]

_PARTS: dict[str, Callable[[Bench], dict[str, Any]]] = {**PARTS, "reference": reference}


def parser() -> Parser:
    """The options of the benchmark."""
    result = command_parser(
        "bench gpu",
        "On one GPU, in under eight minutes: noise and networks against the CPU in float32, tf32 and bf16; what samplers and a "
        "training step wait for; torch.compile; a sampler's own time beside its network's; images and training steps a second, "
        "memory; training steps against the plain reference's. A check that fails ends the command with 2.",
        "ctm bench gpu --out runs/bench/gpu.json",
    )
    add = result.add_argument
    add(
        "--device",
        type=str,
        default="cuda",
        help="cuda, or another accelerator; cpu goes through the same with --small",
    )
    add("--small", action="store_true", help="small networks and few repeats, to try the benchmark itself")
    add("--parts", type=str, default=",".join(_PARTS), help="which parts, with commas")
    add("--out", type=str, default="runs/bench/gpu.json", help="results file, an entry a part")
    add("--continue", action="store_true", help="go on with a results file that exists")
    return result


def run(settings: Namespace) -> None:
    """Run the parts that the results do not hold yet, and print a table. Raises ValueError for parts that are none, for a
    device that is not there, for part reference outside a clone, and, after the table, where a check failed."""
    names = [name.strip() for name in settings.parts.split(",") if name.strip()]
    unknown = [name for name in names if name not in _PARTS]
    if unknown or not names:
        raise ValueError(f"--parts knows {', '.join(_PARTS)}; not {', '.join(unknown) or 'none at all'}")
    device = usable_device(settings.device)
    if device.type == "cpu" and not settings.small:
        raise ValueError("ctm bench gpu measures a GPU: give --device cuda, or --small to try it on the CPU")
    if "reference" in names:
        plain_module()  # refused now, not after minutes
    results = Results(Path(settings.out), go_on=settings["continue"])
    bench, console = Bench(device, settings.small), text_console()
    for name in names:
        if name not in results.entries:
            started = time.perf_counter()
            found = _part(_PARTS[name], bench)
            results.add(name, {"card": bench.card, "seconds": round(time.perf_counter() - started, 1), **found})
    console.print(table({name: results.entries[name] for name in names}))
    console.print(f"results: {settings.out}")
    failed = failures({name: results.entries[name] for name in names})
    if failed:
        raise ValueError(f"checks failed on {bench.card}: {'; '.join(failed)}")


def _part(part: Callable[[Bench], dict[str, Any]], bench: Bench) -> dict[str, Any]:
    """What a part finds. Memory that it held is given back, so that the next part's peak is its own."""
    if bench.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(bench.device)
    return part(bench)


def failures(entries: dict[str, dict[str, Any]]) -> list[str]:
    """The checks that failed, in words: those rows of the parts that have `passed` false."""
    rows = [(name, row) for name, entry in entries.items() for row in entry["rows"]]
    return [f"{name}: {row['what']} {row['value']:.3g}, at most {row['limit']:.3g}" for name, row in rows if _bad(row)]


def _bad(row: dict[str, Any]) -> bool:
    return row["limit"] is not None and not row["value"] <= row["limit"]


def table(entries: dict[str, dict[str, Any]]) -> Table:
    """What was found, a line for each number."""
    cards = ", ".join(dict.fromkeys(str(entry["card"]) for entry in entries.values()))
    result = Table(title=f"ctm bench gpu on {cards}")
    for words in ("part", "what", "value", "limit", ""):
        result.add_column(words, justify="left" if words in ("part", "what", "") else "right")
    for name, entry in entries.items():
        for row in entry["rows"]:
            limit = "" if row["limit"] is None else f"{row['limit']:.3g}"
            verdict = "" if row["limit"] is None else ("failed" if _bad(row) else "met")
            result.add_row(name, row["what"], f"{row['value']:.4g} {row['unit']}".strip(), limit, verdict)
    return result
