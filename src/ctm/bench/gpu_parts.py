"""The parts of `ctm bench gpu`. Each gives rows: what was measured, its value and unit, and a limit where it is a check."""

from __future__ import annotations

import copy
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ctm.bench.cells import cells
from ctm.bench.overhead import measure
from ctm.conditioner import Labels
from ctm.data.stack import sides_of
from ctm.models import TrajectoryModel
from ctm.noise import karras_grid
from ctm.philox import normals, philox4x32
from ctm.sampling import draw, gamma
from ctm.terminal.recipe_parser import parse_recipe
from ctm.training.assembly import prepare
from ctm.training.dry_run import dry_run
from ctm.training.recipe import Recipe, built_for
from ctm.training.stand_in import random_images
from ctm.training.trainer import _step

__all__ = ["PARTS", "Bench"]

Row = dict[str, Any]
_NETWORKS = {"cifar10-ctm": (64, 512), "imagenet64-ctm": (64, 256)}  # recipe -> batches for images a second
_TRAINED = {"cifar10-ctm": 128, "imagenet64-ctm": 32}  # recipe -> images of a step on one card
_PEAK = {
    "H100": 989e12,
    "H200": 989e12,
    "A100": 312e12,
    "L4": 121e12,
    "4090": 165e12,
}  # dense bf16 FLOP/s, makers' data sheets
# What rounding may do: six to ten times what a CPU does in float32 and bf16; tf32 rounds to the bits of float16.
_LIMITS = {
    "float32": 1e-4,
    "tf32": 2e-2,
    "bf16": 1e-1,
}  # relative to the largest value


@dataclass(frozen=True)
class Bench:
    """Where to measure, and whether with small networks."""

    device: torch.device
    small: bool

    @property
    def card(self) -> str:
        """The device's name."""
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type

    def model(self, recipe: str) -> TrajectoryModel:
        """The recipe's network with random weights, none of them zero, in eval mode on the CPU."""
        found, _ = parse_recipe(["--config", recipe, *(self.smaller if self.small else ())])
        shape = (found.data.channels or 3, *sides_of(found.data.size or 32))
        torch.manual_seed(0)
        classes = 10
        network = built_for(found.network, shape, Labels(classes))
        with torch.no_grad():
            for parameter in network.parameters():
                if parameter.dim() > 1:
                    parameter.normal_(std=parameter[0].numel() ** -0.5)
        return TrajectoryModel(network, shape=shape, num_classes=classes).eval()

    @property
    def smaller(self) -> tuple[str, ...]:
        """Options that make a recipe of the paper small."""
        return ("--data.size", "16", "--network.init_args.channels", "32", "--network.init_args.blocks", "1")

    def recipe(self, name: str, *, batch: int) -> Recipe:
        """A recipe of the paper on random pictures, by squared distance, in the precision that this device trains in."""
        precision = "fp32" if self.device.type == "cpu" else "bf16"
        words = ["--config", name, *(self.smaller if self.small else ()), "--data.name", "no-such-pictures"]
        words += ["--data.batch_size", str(batch), "--engine.precision", precision]
        words += ["--objectives.0.distance", "ctm.objectives.Squared"]
        return parse_recipe(words)[0]

    def wait(self) -> None:
        """Until the device has done its work."""
        if self.device.type != "cpu":
            torch.accelerator.synchronize()

    def seconds(self, work: Callable[[], object], repeats: int) -> float:
        """The median of some repeats, after one that warms up."""
        found = []
        for _ in range(repeats + 1):
            self.wait()
            started = time.perf_counter()
            work()
            self.wait()
            found.append(time.perf_counter() - started)
        return statistics.median(found[1:])


def _row(what: str, value: float | Tensor, unit: str = "", limit: float | None = None) -> Row:
    return {"what": what, "value": float(value), "unit": unit, "limit": limit}


def noise(bench: Bench) -> dict[str, Any]:
    """Integers of the counter-based generator equal to the CPU's, normal numbers to 1e-6."""
    counter = torch.randint(2**32, (4, 1 << (12 if bench.small else 20)), generator=torch.Generator().manual_seed(0))
    key = torch.tensor([[1], [2]])
    here, there = philox4x32(counter, key), philox4x32(counter.to(bench.device), key.to(bench.device))
    different = (there.cpu() != here).sum()
    apart = (normals(there).cpu() - normals(here)).abs().max()
    return {
        "rows": [
            _row("integers that differ", different, limit=0),
            _row("normals, largest difference", apart, limit=1e-6),
        ]
    }


@contextmanager
def _precision(name: str, model: TrajectoryModel) -> Iterator[None]:
    """float32 without tf32, with it, or networks in bf16 by autocast."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if name == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = name == "tf32"
    model.autocast = torch.bfloat16 if name == "bf16" else None
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
        model.autocast = None


def parity(bench: Bench) -> dict[str, Any]:
    """Denoiser and jump of the paper's networks against float64 on the CPU, at levels from sigma_max down."""
    rows = []
    for recipe in _NETWORKS:
        model = bench.model(recipe)
        exact, here = copy.deepcopy(model).double(), model.to(bench.device)
        t = karras_grid(4, dtype=torch.float64)[:4]
        x = t.reshape(-1, 1, 1, 1) * torch.randn(4, *model.shape, dtype=torch.float64)
        labels, s = torch.tensor([0, 3, -1, 9]), torch.full_like(t, 0.002)
        with torch.no_grad():
            truth = torch.stack([exact.denoise(x, t, labels), exact.jump(x, t, s, labels)])
            for name, limit in _LIMITS.items():
                at, to, level = (value.to(bench.device, torch.float32) for value in (x, s, t))
                known = labels.to(bench.device)
                with _precision(name, here):
                    found = torch.stack([here.denoise(at, level, known), here.jump(at, level, to, known)])
                error = (found.double().cpu() - truth).abs().amax() / truth.abs().amax()
                rows.append(_row(f"{recipe}, {name}: error of D and G", error, limit=limit))
    return {"rows": rows}


def synchronisation(bench: Bench) -> dict[str, Any]:
    """A sampler after its start and a training step with torch.cuda.set_sync_debug_mode: what waits is an error, or counted."""
    model = bench.model("cifar10-ctm").to(bench.device)
    rows = []
    for cell in cells(model, ["gamma", "heun", "dpmpp_2m_sde"], [4], [0.5]):
        x = model.sigma_max * torch.randn(4, *model.shape, device=bench.device)
        levels = cell.levels.to(bench.device)
        labels = torch.zeros(4, dtype=torch.int64, device=bench.device)

        def sampler() -> None:
            with torch.no_grad():
                cell.method(model, x, levels, condition=labels)  # noqa: B023 - called at once

        rows.append(_row(f"{cell.sampler}: waits in a whole run, its start included", _waits(bench, sampler)))
    recipe = bench.recipe("cifar10-ctm", batch=8)
    images, _ = random_images(recipe, "")
    accelerator = Accelerator(cpu=bench.device.type == "cpu")
    run = prepare(recipe, accelerator, images, stand_in=[])
    for group in run.optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    step = iter(range(recipe.steps))
    rows.append(_row("a training step: waits", _waits(bench, lambda: _step(run, next(step))), limit=3))
    return {"rows": rows}


def _waits(bench: Bench, work: Callable[[], object]) -> int:
    """How often `work` waits for a CUDA device; 0 where the device cannot say."""
    if bench.device.type != "cuda":
        return 0
    work()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            work()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(one.message) for one in told)


def compilation(bench: Bench) -> dict[str, Any]:
    """torch.compile of the CIFAR-10 network: seconds to compile, what it changes, and what it saves."""
    model = bench.model("cifar10-ctm").to(bench.device)
    compiled = copy.deepcopy(model)
    compiled.network.compile(backend="inductor")
    x = 80 * torch.randn(4 if bench.small else 64, *model.shape, device=bench.device)
    t, s = (torch.full((len(x),), level, device=bench.device) for level in (80.0, 0.002))
    with torch.no_grad():
        started = time.perf_counter()
        found = compiled.jump(x, t, s)
        bench.wait()
        first = time.perf_counter() - started
        apart = (found - model.jump(x, t, s)).abs().amax() / found.abs().amax()
        eager = bench.seconds(lambda: model.jump(x, t, s), 1 if bench.small else 10)
        faster = eager / bench.seconds(lambda: compiled.jump(x, t, s), 1 if bench.small else 10)
    return {
        "rows": [
            _row("seconds to compile", first, "s"),
            _row("compiled against eager: difference", apart, limit=1e-3),
            _row("compiled is faster by", faster, "×"),
        ]
    }


def overhead(bench: Bench) -> dict[str, Any]:
    """A sampler's own time beside its network's, at batch 64 with one and four jumps, in both streams of noise."""
    model = bench.model("cifar10-ctm").to(bench.device)
    rows = []
    for jumps in (1, 4):
        cell = cells(model, ["gamma"], [jumps], [0.5])[-1]
        for stream in ("v1", "v2"):
            batch, pairs = (4, 1) if bench.small else (64, 11)
            found = measure(model, cell, batch, pairs, bench.device, noise_stream=stream)
            share = found["ratio_to_inside"] - 1
            rows.append(_row(f"{jumps} jumps, noise {stream}: own time / network's (aim 0.03)", share))
    return {"rows": rows}


def sampling(bench: Bench) -> dict[str, Any]:
    """Images a second at one and four jumps, float32 and bf16."""
    rows = []
    for recipe, batches in _NETWORKS.items():
        model = bench.model(recipe).to(bench.device)
        for batch in (2,) if bench.small else batches:
            for name in ("tf32", "bf16"):
                for jumps in (1, 4):
                    levels = karras_grid(jumps)
                    with _precision(name, model):
                        seconds = bench.seconds(lambda: _made(bench, model, batch, levels), 1 if bench.small else 5)  # noqa: B023
                    rows.append(_row(f"{recipe}, batch {batch}, {name}, {jumps} jumps", batch / seconds, "images/s"))
    return {"rows": rows}


def _made(bench: Bench, model: TrajectoryModel, batch: int, levels: Tensor) -> Tensor:
    labels = torch.zeros(batch, dtype=torch.int64)
    return draw(
        model,
        range(batch),
        levels=levels,
        sampler=gamma,
        condition=labels,
        seed=0,
        device=bench.device,
        noise_stream="v2",
    )


def training(bench: Bench) -> dict[str, Any]:
    """A step of the paper's networks in bf16 on random pictures, by squared distance: seconds, memory, share of the peak."""
    rows = []
    for name, batch in _TRAINED.items():
        recipe = bench.recipe(name, batch=4 if bench.small else batch)
        cost = dry_run(recipe)
        said = f"{name}, batch {recipe.data.batch_size}, {recipe.engine.precision}"
        rows += [
            _row(f"{said}: steps in the mean over k", 1 / cost.expected_seconds, "a second"),
            _row(f"{said}: peak memory", cost.peak_bytes / 1e9, "GB"),
        ]
        peak = next((rate for card, rate in _PEAK.items() if card in bench.card), None)
        if peak is not None:
            share = _step_flops(bench, name, cost.evaluations) * recipe.data.batch_size / cost.seconds / peak
            rows.append(_row(f"{said}: share of the card's {peak / 1e12:.0f} TFLOP/s", share))
    return {"rows": rows}


def _step_flops(bench: Bench, name: str, evaluations: dict[str, int]) -> float:
    """Operations of a step for one image: each evaluation is a forward pass, a student's with gradient costs two more."""
    model = bench.model(name)
    x, level = torch.zeros(1, *model.shape), torch.ones(1)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.jump(x, level, level / 2)
    forward = counter.get_total_flops()
    return forward * sum(count * (3 if network == "student" else 1) for network, count in evaluations.items())


PARTS: dict[str, Callable[[Bench], dict[str, Any]]] = {
    "noise": noise,
    "parity": parity,
    "synchronisation": synchronisation,
    "compilation": compilation,
    "overhead": overhead,
    "sampling": sampling,
    "training": training,
}
