"""What a recipe would cost: everything is built, steps are taken and measured, nothing is written."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ctm.data import Images
from ctm.models.protocol import Diffusion
from ctm.objectives import Objective
from ctm.objectives.player import players_of, student_learns
from ctm.training.assembly import Run, load_data, prepare
from ctm.training.log import peak_memory
from ctm.training.processes import check_launch
from ctm.training.recipe import Recipe
from ctm.training.stand_in import random_images
from ctm.training.step import step_generator
from ctm.training.trainer import _step

__all__ = ["DryRun", "dry_run", "expected_teacher_evaluations"]

_DRAWS = 4000
_AVERAGES = ("ema", "target")


@dataclass(frozen=True)
class Kind:
    """Steps in which the same networks learn. learners: their names. steps: those of one common period of all rhythms. share: of
    all steps. seconds, teacher_seconds: of a step, and those inside the teacher. evaluations: of each network for each image."""

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
    kinds: of steps, by who learns, the student's first.
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
    stand_ins: list[str]
    start: list[str]

    def lines(self) -> list[str]:
        """The measurements in words."""
        recipe, whole = self.recipe, self.expected_seconds * self.recipe.steps
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
            + ("" if self.device.startswith("cuda") else " (of the process)"),
            f"evaluations for each image in {which} step: {calls}{mean}",
            f"time: {self.seconds:.3g} s a step of {recipe.data.batch_size} images (the first {self.first_seconds:.3g} s), "
            f"about {self.expected_seconds:.3g} s in the mean over steps",
            *([f"who learns: {'; '.join(kind.words() for kind in self.kinds)}"] if len(self.kinds) > 1 else []),
            f"whole run: {recipe.steps:,} steps, about {_duration(whole)} without sample grids and checkpoints",
        ]
        return [result[0], *self.stand_ins, *self.start, *result[1:]]


def dry_run(recipe: Recipe, images: Images | None = None) -> DryRun:
    """Build everything, take a step to warm up and a measured one for each kind of step (who learns in it); writes nothing. What
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
    kinds = [_taken(run, kind) for kind in kinds_of_steps(recipe.objectives, begin)]
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


def _taken(run: Run, kind: Kind) -> Kind:
    """The kind with the measurements of its second step; the first warms up."""
    step, period = kind.steps[0], round(len(kind.steps) / kind.share)
    first, _, _ = _measured(run, step)
    seconds, teacher_seconds, evaluations = _measured(run, step + period)
    return replace(
        kind,
        first_seconds=first,
        seconds=seconds,
        teacher_seconds=teacher_seconds,
        evaluations=evaluations,
    )


def expected_teacher_evaluations(recipe: Recipe, model: Diffusion, shape: tuple[int, ...]) -> float:
    """E[evaluations of the teacher for each image of a step], the mean of 4,000 draws spread over the run."""
    like = torch.empty(1, *shape)
    generator = step_generator(0, 0)
    total = 0
    for step in (draw * recipe.steps // _DRAWS for draw in range(_DRAWS)):
        objectives = recipe.objectives_at(step)
        if student_learns(objectives, step):
            active = (o for o in objectives if o.active(step))
            total += sum(o.teacher_evaluations(o.draw(model, like, generator)) for o in active)
    return total / _DRAWS


def _measured(run: Run, step: int) -> tuple[float, float, dict[str, int]]:
    """Take a step. Returns its seconds, those inside the teacher, and how often each network was called."""
    models = {"student": run.student, "target": run.target, "teacher": run.teacher}
    calls, inside = {name: 0 for name, model in models.items() if model is not None}, [0.0]
    with _counting(models, calls, inside, run.accelerator.device):
        started = _now(run.accelerator.device)
        _step(run, step)
        return _now(run.accelerator.device) - started, inside[0], calls


@contextmanager
def _counting(
    models: dict[str, Any], calls: dict[str, int], inside: list[float], device: torch.device
) -> Iterator[None]:
    """Count the calls of each model's network meanwhile, and the teacher's seconds."""

    def begin(module: nn.Module, inputs: Any, name: str) -> None:
        calls[name] += 1
        if name == "teacher":
            inside[0] -= _now(device)

    def end(module: nn.Module, inputs: Any, output: Any) -> None:
        inside[0] += _now(device)

    hooks = [
        models[name].network.register_forward_pre_hook(lambda m, i, name=name: begin(m, i, name)) for name in calls
    ]
    if "teacher" in calls:
        hooks.append(models["teacher"].network.register_forward_hook(end))
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
