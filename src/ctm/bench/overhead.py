"""`ctm bench overhead`: what a sampler adds to the time of the network evaluations that it makes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace
from rich.table import Table

from ctm.bench.cells import NAMES, Cell, cells
from ctm.bench.results import Results
from ctm.console import text_console
from ctm.models import ConsistencyModel, TrajectoryModel, load_model
from ctm.noise import karras_grid
from ctm.sampling import class_labels, draw, jump_to_many, starting_noise
from ctm.sampling.image_noise import NoiseStream
from ctm.terminal.options import add_device_option, jumper, usable_device
from ctm.terminal.parser import Parser, command_parser

__all__ = ["measure", "measure_fan", "network_calls", "parser", "run"]

JumpModel = ConsistencyModel | TrajectoryModel
Calls = list[tuple[tuple[Any, ...], dict[str, Any]]]
_WIDTH = 120  # of the table where the output is no terminal


def parser() -> Parser:
    """The options of the benchmark."""
    result = command_parser(
        "bench overhead",
        "Time a batch of samples against the bare network evaluations in it: against a run of these alone, in pairs, and against "
        "the time inside the network in the same run, which is less noisy. All else that a sampler does is counted: each image's "
        "own noise, the scalings around the network, checks and steps; files are not.",
        "ctm bench overhead --models models/fashion-mnist-ctm --samplers gamma,heun --pairs 21",
    )
    add = result.add_argument
    add("--models", type=str, default="models/fashion-mnist-ctm,models/digits-ctm", help="CTMs, with commas")
    add("--samplers", type=str, default=",".join(NAMES), help="which, by name, with commas")
    add(
        "--steps", type=int, default=8, help="evaluations; the next lower number that a sampler can make (two_level: 2)"
    )
    add("--gamma", type=float, default=0.5, help="γ of γ-sampling")
    add("--batch_size", type=int, default=64, help="samples in the batch")
    add("--pairs", type=int, default=11, help="pairs of runs, sampler and bare evaluations")
    add_device_option(result)
    add("--out", type=str, default="runs/bench/overhead.json", help="results file")
    add("--continue", action="store_true", help="add to a results file that exists")
    return result


def run(settings: Namespace) -> None:
    """Measure each model and sampler, keep, print."""
    if min(settings.batch_size, settings.pairs) < 1:
        raise ValueError(f"--batch_size and --pairs must be at least 1, got {settings.batch_size} and {settings.pairs}")
    results = Results(Path(settings.out), go_on=settings["continue"])
    device = usable_device(settings.device)
    console = text_console()
    console.width = max(console.width, _WIDTH)
    for name in (part.strip() for part in settings.models.split(",")):
        instead = "the samplers are timed on a CTM"
        model = jumper(load_model(name).to(device), f"--models: {name}", instead)
        table = Table(title=f"{name}, batch {settings.batch_size}, {device.type}")
        for words in ("sampler", "evaluations", "bare ms", "to bare", "to inside", "own µs an evaluation"):
            table.add_column(words, justify="left" if words == "sampler" else "right", no_wrap=True)
        for cell in _chosen(model, settings):
            found = measure(model, cell, settings.batch_size, settings.pairs, device)
            asked = {"model": name, "batch_size": settings.batch_size, "device": str(device)}
            results.add(f"{name}/{cell.name}/{settings.batch_size}", asked | found)
            table.add_row(*_cells(found))
        console.print(table)
        for size in sorted({1, settings.batch_size}):
            found = measure_fan(model, size, settings.pairs, device)
            asked = {"model": name, "batch_size": size, "device": str(device)}
            results.add(f"{name}/fan/{size}", asked | found)
            console.print(
                f"{found['levels']} jumps from one state, batch {size}: together they take {found['ratio']:.2f} of the time of "
                f"{found['levels']} calls"
            )
    console.print(f"results: {settings.out}")


def _chosen(model: JumpModel, settings: Namespace) -> list[Cell]:
    """Each sampler once: at the number of evaluations asked for, the two-level form at its two."""
    names = [name.strip() for name in settings.samplers.split(",") if name.strip()]
    made = cells(model, names, sorted({2, settings.steps}), [settings.gamma])
    return list({cell.sampler: cell for cell in made}.values())


def _cells(found: dict[str, Any]) -> list[str]:
    gamma = "" if found["gamma"] is None else f", γ = {found['gamma']:g}"
    ratios = [f"{found[name]:.3f}" for name in ("ratio_to_bare", "ratio_to_inside")]
    numbers = [f"{1000 * found['bare_seconds']:.1f}", *ratios, f"{found['own_microseconds']:.0f}"]
    return [f"{found['sampler']}{gamma}", str(found["evaluations"]), *numbers]


def network_calls(model: JumpModel, work: Callable[[], object]) -> Calls:
    """What the model's network is called with while `work` runs."""
    calls: Calls = []

    def keep(module: torch.nn.Module, positional: tuple[Any, ...], named: dict[str, Any]) -> None:
        calls.append((positional, named))

    hook = model.network.register_forward_pre_hook(keep, with_kwargs=True)
    try:
        work()
    finally:
        hook.remove()
    return calls


def measure(
    model: JumpModel, cell: Cell, batch_size: int, pairs: int, device: torch.device, noise_stream: NoiseStream = "v1"
) -> dict[str, Any]:
    """Medians over the pairs. ratio_to_bare: of the sampler's seconds to the seconds of its network evaluations run alone;
    ratio_to_inside: to those inside the network in the same run; own_microseconds: outside the network, for an evaluation.

    On a CPU the seconds are the processor's, which other processes disturb less."""
    labels = class_labels(model, batch_size)
    options: dict[str, Any] = {"levels": cell.levels, "sampler": cell.method, "noise_stream": noise_stream}

    def sampler() -> None:
        draw(model, range(batch_size), seed=0, device=device, condition=labels, **options)

    calls = network_calls(model, sampler)

    def bare() -> None:
        with torch.no_grad():
            for positional, named in calls:
                model.network(*positional, **named)

    bare()
    clock = _clock(device)
    runs = [_pair(model.network, sampler, bare, clock, number % 2 == 0) for number in range(pairs)]
    return cell.record | {
        "evaluations": len(calls),
        "pairs": pairs,
        "bare_seconds": statistics.median(alone for _, _, alone in runs),
        "ratio_to_bare": statistics.median(whole / alone for whole, _, alone in runs),
        "ratio_to_inside": statistics.median(whole / inside for whole, inside, _ in runs),
        "own_microseconds": 1e6 * statistics.median(whole - inside for whole, inside, _ in runs) / len(calls),
    }


def measure_fan(
    model: JumpModel, batch_size: int, pairs: int, device: torch.device, count: int = 8
) -> dict[str, object]:
    """ratio: the median over the pairs of the seconds of `jump_to_many` to `count` levels, over the seconds of `count` calls of
    `jump`."""
    levels = karras_grid(count, model.sigma_min, model.sigma_max, dtype=torch.float32)[1:]
    x = model.sigma_max * starting_noise(model.shape, range(batch_size)).to(device)
    labels = class_labels(model, batch_size)
    labels = None if labels is None else labels.to(device)
    start = torch.full((batch_size,), model.sigma_max, device=device)

    def together() -> None:
        jump_to_many(model, x, model.sigma_max, levels, condition=labels)

    def apart() -> None:
        with torch.no_grad():
            for level in levels.tolist():
                model.jump(x, start, torch.full_like(start, level), labels)

    together()
    apart()
    clock = _clock(device)
    seconds = []
    for number in range(pairs):
        order = (together, apart) if number % 2 == 0 else (apart, together)
        found = {work: _timed(work, clock) for work in order}
        seconds.append(found[together] / found[apart])
    return {"levels": count, "pairs": pairs, "ratio": statistics.median(seconds)}


def _clock(device: torch.device) -> Callable[[], float]:
    """Processor seconds on a CPU; elsewhere the clock's, once the device has done its work."""
    if device.type == "cpu":
        return time.process_time

    def clock() -> float:
        torch.accelerator.synchronize()
        return time.perf_counter()

    return clock


def _pair(
    network: torch.nn.Module,
    sampler: Callable[[], None],
    bare: Callable[[], None],
    clock: Callable[[], float],
    sampler_first: bool,
) -> tuple[float, float, float]:
    """Seconds of the sampler, of it inside the network, and of the bare evaluations."""
    if not sampler_first:
        alone = _timed(bare, clock)
    moments: list[float] = []
    hooks = [
        network.register_forward_pre_hook(lambda *_: moments.append(clock())),
        network.register_forward_hook(lambda *_: moments.append(clock())),
    ]
    try:
        whole = _timed(sampler, clock)
    finally:
        for hook in hooks:
            hook.remove()
    if sampler_first:
        alone = _timed(bare, clock)
    return whole, sum(moments[1::2]) - sum(moments[::2]), alone


def _timed(work: Callable[[], None], clock: Callable[[], float]) -> float:
    started = clock()
    work()
    return clock() - started
