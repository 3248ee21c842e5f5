"""What a recipe would cost: everything is built, steps are taken and measured, nothing is written."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ctm.data import Dataset
from ctm.models import AnyModel
from ctm.models.protocol import Diffusion
from ctm.objectives import Objective
from ctm.objectives.player import players_of, student_learns
from ctm.training.assembly import Run, load_data, prepare
from ctm.training.log import peak_memory
from ctm.training.processes import all_reduce_max, check_launch
from ctm.training.recipe import Recipe
from ctm.training.stand_in import random_images
from ctm.training.step import step_generator
from ctm.training.trainer import _step

__all__ = ["DryRun", "dry_run", "expected_teacher_evaluations"]

_DRAWS = 4000
_LONGEST = 60.0  # seconds: a step that would take a CPU longer is measured with fewer images
_AVERAGES = ("ema", "target")


@dataclass(frozen=True)
class Kind:
    """Steps in which the same networks learn. learners: their names. steps: of one common period of all rhythms. share: of all
    steps. seconds, teacher_seconds: of a step, and those inside the teacher. evaluations: of each network for each image."""

    learners: tuple[str, ...]
    steps: list[int]
    share: float
    first_seconds: float = 0.0
    seconds: float = 0.0
    teacher_seconds: float = 0.0
    evaluations: dict[str, int] = field(default_factory=dict)

    def words(self) -> str:
        """Who learns, how often, and how long it takes."""
        return f"{' and '.join(self.learners)} in {self.share:.0%} of the steps, {self.seconds:.3g} s each"


@dataclass(frozen=True)
class DryRun:
    """The measurements of one process.

    parameters: of each network that computes, by name. parameter_bytes: of all that are held, averages too; gradient_bytes,
    optimizer_bytes: after a step. peak_bytes: largest memory of the GPU's tensors, or of the process where there is none.
    evaluations: of each network for each image in the student's measured step. expected_teacher: the teacher's, in the mean over
    steps. first_seconds, seconds: the student's step that warms up, and its next one. expected_seconds: of a step in the mean.
    kinds: of steps, by who learns, the student's first. images: of a measured step; where they are fewer than the recipe's, all
    seconds are those of the recipe's, in proportion.
    stand_ins: a line for each thing that is not on this machine and what was taken in its place. start: lines on where the
    student's weights and noise levels come from."""

    recipe: Recipe
    device: str
    processes: int
    parameters: dict[str, int]
    parameter_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    peak_bytes: int
    evaluations: dict[str, int]
    expected_teacher: float
    first_seconds: float
    seconds: float
    expected_seconds: float
    kinds: list[Kind]
    images: int
    stand_ins: list[str]
    start: list[str]

    def lines(self) -> list[str]:
        """The measurements in words."""
        recipe, whole = self.recipe, self.expected_seconds * self.recipe.steps
        part = (
            "" if self.images == recipe.data.batch_size else f" with {self.images} of {recipe.data.batch_size} images"
        )
        networks = ", ".join(f"{name} {count:,}" for name, count in self.parameters.items())
        calls = ", ".join(f"{name} {count}" for name, count in self.evaluations.items())
        place = f"{self.device}, {self.processes} process{'es' if self.processes > 1 else ''}"
        held = f"parameters with averages {_size(self.parameter_bytes)}, gradients {_size(self.gradient_bytes)}"
        taught, which = "teacher" in self.evaluations, "this" if len(self.kinds) == 1 else "the student's"
        mean = f"; of the teacher about {self.expected_teacher:.1f} in the mean over steps" if taught else ""
        result = [
            f"dry run on {place}: nothing is written",
            f"parameters: {networks}; total {sum(self.parameters.values()):,}",
            f"memory: {held}, optimiser {_size(self.optimizer_bytes)}; peak {_size(self.peak_bytes)}"
            + ("" if self.device.startswith("cuda") else f" (of the process{part})"),
            *([f"measured{part} a step, as this processor takes long: all times are in proportion"] if part else []),
            f"evaluations for each image in {which} step: {calls}{mean}",
            f"time: {self.seconds:.3g} s a step of {recipe.data.batch_size} images (the first {self.first_seconds:.3g} s), "
            f"about {self.expected_seconds:.3g} s in the mean over steps",
            *([f"who learns: {'; '.join(kind.words() for kind in self.kinds)}"] if len(self.kinds) > 1 else []),
            f"whole run: {recipe.steps:,} steps, about {_duration(whole)} without sample grids and checkpoints",
        ]
        return [result[0], *self.stand_ins, *self.start, *result[1:]]


def dry_run(recipe: Recipe, images: Dataset | None = None) -> DryRun:
    """Build everything, take a step to warm up and a measured one for each kind of step (who learns in it); writes nothing. On a
    CPU a step that would take more than a minute is measured with fewer images, and its times are in proportion. What
    is not on this machine is stood in for:
    data by random pictures of the recipe's shape, a teacher (also one that is needed and not named) by a copy of the student,
    a starting student by random weights; an adversarial objective without any of its feature networks is left out. Raises
    ValueError as `train`, and FileNotFoundError where the shape of missing data is not to be told from the recipe."""
    accelerator = Accelerator(cpu=not torch.accelerator.is_available())
    check_launch(accelerator.num_processes, "train")
    if accelerator.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(accelerator.device)
    stand_ins: list[str] = []
    if images is None:
        try:
            images = load_data(recipe)
        except FileNotFoundError as error:
            images, line = random_images(recipe, str(error))
            stand_ins.append(line)
    run = prepare(recipe, accelerator, images, stand_in=stand_ins)
    expected = expected_teacher_evaluations(recipe, run.student, images.shape)  # also where an objective is left out
    recipe = run.recipe
    for group in run.optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    begin = recipe.steps // 2  # where an objective that starts late takes part
    kinds, images_taken = _kinds_measured(run, kinds_of_steps(recipe.objectives, begin))
    student, evaluations = kinds[0], kinds[0].evaluations
    each = student.teacher_seconds / max(evaluations.get("teacher", 0), 1)
    held = {**run.modules(), **({"teacher": run.teacher} if run.teacher is not None else {})}
    return DryRun(
        recipe=recipe,
        device=str(accelerator.device),
        processes=accelerator.num_processes,
        parameters={name: _numel(module) for name, module in held.items() if not name.startswith(_AVERAGES)},
        parameter_bytes=_bytes(p for module in held.values() for p in module.parameters()),
        gradient_bytes=_bytes(p.grad for m in held.values() for p in m.parameters() if p.grad is not None),
        optimizer_bytes=sum(_state_bytes(optimizer) for optimizer in run.optimizers.values()),
        peak_bytes=int(peak_memory(accelerator.device) * 2**20),
        evaluations=evaluations,
        expected_teacher=expected,
        first_seconds=student.first_seconds,
        seconds=student.seconds,
        expected_seconds=sum(kind.share * (kind.seconds - kind.teacher_seconds) for kind in kinds) + expected * each,
        kinds=kinds,
        images=images_taken,
        stand_ins=stand_ins,
        start=run.begun.lines,
    )


def kinds_of_steps(objectives: Sequence[Objective], begin: int) -> list[Kind]:
    """The kinds of steps from step `begin` on, by who learns: those in which the student does first."""
    players = list(players_of(objectives).values())
    period = math.lcm(*(player.rhythm.period for player in players))
    found: dict[tuple[str, ...], list[int]] = {}
    for step in range(begin, begin + period):
        learners = ["student"] if student_learns(objectives, step) else []
        learners += [player.name for player in players if player.rhythm.player_learns(step)]
        found.setdefault(tuple(learners), []).append(step)
    kinds = [Kind(learners, steps, len(steps) / period) for learners, steps in found.items()]
    return sorted(kinds, key=lambda kind: "student" not in kind.learners)


def _kinds_measured(run: Run, kinds: Sequence[Kind]) -> tuple[list[Kind], int]:
    """The kinds with their measurements, and the number of images in a measured step. On a CPU these are as many as take about
    a minute, four times as many each time, where all of the recipe's would take longer; seconds are in proportion."""
    whole, taken = run.recipe, run.recipe.data.batch_size
    least = run.accelerator.num_processes * (2 if run.players else 1)  # some layers of a player need two images
    if run.accelerator.device.type == "cpu" and taken > least:
        taken = _enough(run, kinds[0].steps[0], least)
    scale = whole.data.batch_size / taken
    try:
        _take(run, whole, taken)
        return [_scaled(_taken(run, kind), scale) for kind in kinds], taken
    finally:
        run.recipe = whole


def _enough(run: Run, step: int, least: int) -> int:
    """The number of images with which a step takes about `_LONGEST` seconds, or the recipe's if it takes less."""
    whole, images = run.recipe, least
    _take(run, whole, images)
    for _ in range(2):  # the first warms up
        seconds, _, _ = _measured(run, step)
        if seconds * whole.data.batch_size / images <= _LONGEST:
            return whole.data.batch_size
        if seconds > _LONGEST:
            return images
    while seconds * 4 <= _LONGEST and images * 4 <= whole.data.batch_size:
        images *= 4
        _take(run, whole, images)
        seconds, _, _ = _measured(run, step)
        if seconds * whole.data.batch_size / images <= _LONGEST:
            return whole.data.batch_size
    return images


def _take(run: Run, whole: Recipe, images: int) -> None:
    """Let the run's steps have so many images: in one piece, where they are fewer than the recipe's."""
    if images == whole.data.batch_size:
        run.recipe = whole
        return
    run.recipe = replace(whole, data=replace(whole.data, batch_size=images), engine=replace(whole.engine, accumulate=1))


def _scaled(kind: Kind, factor: float) -> Kind:
    names = ("first_seconds", "seconds", "teacher_seconds")
    return replace(kind, **{name: factor * getattr(kind, name) for name in names})


def _taken(run: Run, kind: Kind) -> Kind:
    """The kind with the measurements of its second step. The first warms up, and is the only one if it takes very long."""
    step, period = kind.steps[0], round(len(kind.steps) / kind.share)
    first, teacher_seconds, evaluations = _measured(run, step)
    seconds = first
    if first <= _LONGEST:
        seconds, teacher_seconds, evaluations = _measured(run, step + period)
    return replace(kind, first_seconds=first, seconds=seconds, teacher_seconds=teacher_seconds, evaluations=evaluations)


def expected_teacher_evaluations(recipe: Recipe, model: Diffusion, shape: tuple[int, ...]) -> float:
    """E[evaluations of the teacher for each image of a step], the mean of 4,000 draws spread over the run."""
    like = torch.empty(1, *shape)
    generator = step_generator(0, 0)
    each = 2 if recipe.teacher_guide is not None and recipe.teacher_guidance > 1 else 1
    total = 0
    for step in (draw * recipe.steps // _DRAWS for draw in range(_DRAWS)):
        objectives = recipe.objectives_at(step)
        if student_learns(objectives, step):
            active = (o for o in objectives if o.active(step))
            total += sum(o.teacher_evaluations(o.draw_at(step, model, like, generator)) for o in active)
    return each * total / _DRAWS


def _measured(run: Run, step: int) -> tuple[float, float, dict[str, int]]:
    """Take a step. Returns its seconds (of the slowest process), those inside the teacher, and how often each network was
    called."""
    there = {"student": run.student, "target": run.target, "teacher": run.teacher}
    models = {name: model for name, model in there.items() if model is not None}
    calls, inside = dict.fromkeys(models, 0), [0.0]
    with _counting(models, calls, inside, run.accelerator.device):
        started = _now(run.accelerator.device)
        _step(run, step)
        seconds = _now(run.accelerator.device) - started
    if run.accelerator.num_processes > 1:  # all must decide alike how many images to take
        seconds = all_reduce_max(run.accelerator, round(1e6 * seconds)) / 1e6
    return seconds, inside[0], calls


@contextmanager
def _counting(
    models: Mapping[str, AnyModel], calls: dict[str, int], inside: list[float], device: torch.device
) -> Iterator[None]:
    """Count the calls of each model's network meanwhile, and the teacher's seconds."""

    def begin(module: nn.Module, inputs: object, name: str) -> None:
        calls[name] += 1
        if name == "teacher":
            inside[0] -= _now(device)

    def end(module: nn.Module, inputs: object, output: object) -> None:
        inside[0] += _now(device)

    networks = [(name, models[name].network) for name in calls]
    guide = getattr(models.get("teacher"), "guide", None)
    networks += [] if guide is None else [("teacher", guide.network)]  # counted with the teacher that it guides
    hooks = [network.register_forward_pre_hook(lambda m, i, name=name: begin(m, i, name)) for name, network in networks]
    hooks += [network.register_forward_hook(end) for name, network in networks if name == "teacher"]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _now(device: torch.device) -> float:
    """Seconds, when the device has done what it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize()
    return time.perf_counter()


def _numel(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _bytes(tensors: Iterable[Tensor]) -> int:
    """Each tensor once: those under adapters belong to several networks."""
    different = {id(t): t for t in tensors}
    return sum(t.numel() * t.element_size() for t in different.values())


def _state_bytes(optimizer: Any) -> int:
    return _bytes(v for state in optimizer.state.values() for v in state.values() if isinstance(v, Tensor))


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _duration(seconds: float) -> str:
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s"
