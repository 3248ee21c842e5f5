"""One cell of `ctm bench teach` on images: a way, trained for so many seconds, and measured on the way there."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch
import yaml

from ctm.bench.images import ImageBench
from ctm.bench.learners import Learner, learner_of, recipe_of
from ctm.bench.ways import REFERENCE, WAYS
from ctm.training import TrainingDiverged
from ctm.training.run_directory import RunDirectory

__all__ = ["Cell", "run_cell"]

_DECAY = 0.3  # the share of the seconds, at the end, in which the learning rate falls to 0
_PROBE = (3, 15)  # steps of the timing of a step: before it, and in it
_SAVE_SECONDS = 60.0
_YARD = 256  # side of the matrices whose product is timed now and then


@dataclass(frozen=True)
class Cell:
    """A training: which way on which set with which seed, for `minutes` of processor time of one thread, measured at `points`
    moments, each √3 times the one before, of which the last is the end."""

    data: str
    way: str
    minutes: float
    seed: int = 0
    points: int = 5

    @property
    def name(self) -> str:
        return f"images/{self.data}/{self.way}/{self.minutes:g}min/{self.seed}"

    @property
    def moments(self) -> list[float]:
        """The seconds at which it is measured."""
        return [60 * self.minutes * 3.0 ** (-number / 2) for number in reversed(range(self.points))]


@dataclass
class _Progress:
    """What a cell has used and found so far. planned: steps it was thought to take, where its way looks at that. yard_ms:
    milliseconds of a fixed small computation, timed every 200 steps. They rise where other programs slow this one down."""

    planned: int = 0
    seconds: float = 0.0
    teacher_evaluations: int = 0
    memory_mib: float = 0.0
    yard_ms: list[float] = field(default_factory=list)
    curve: list[dict[str, Any]] = field(default_factory=list)


def run_cell(
    cell: Cell, bench: ImageBench, teacher: Path, runs: Path, *, seen: Callable[[str], None] = lambda line: None
) -> dict[str, Any]:
    """Train and measure. Goes on where a killed one stopped, at most a minute of training before. runs: the place of the cells'
    directories. seen: gets a line now and then.

    Processor time of the process is counted in training steps alone, so it holds for one thread. Raises ValueError where the
    directory's training was begun with other settings, DirectoryInUse where another process trains there."""
    directory = RunDirectory(runs / cell.name.replace("/", "-"), keep=1)
    directory.claim(yaml.safe_dump(asdict(cell)))
    try:
        learner, progress = _begun(cell, bench, teacher, directory)
        diverged = _train(cell, bench, learner, progress, directory, seen)
        if diverged is None:
            directory.publish(learner.published())
    finally:
        directory.release()
    return {
        "part": "images",
        **asdict(cell),
        "settings": learner.settings,
        "protocol": bench.protocol,
        "steps": learner.steps,
        **asdict(progress),
        "diverged": diverged,
    }


def _begun(cell: Cell, bench: ImageBench, teacher: Path, directory: RunDirectory) -> tuple[Learner, _Progress]:
    """The training at its start, or where its newest checkpoint has it."""
    recipe = recipe_of(cell.data, teacher, cell.seed)
    reached, progress = directory.latest(), _Progress()
    if reached is None:
        if cell.way != REFERENCE and WAYS[cell.way].by_steps:
            seconds = _seconds_per_step(learner_of(cell.way, recipe, bench.images))
            progress.planned = max(1, int(60 * cell.minutes / seconds))
        return learner_of(cell.way, recipe, bench.images, *_planned(progress)), progress
    kept = _kept(directory, reached)
    progress = _Progress(**kept["progress"])
    learner = learner_of(cell.way, recipe, bench.images, *_planned(progress))
    if learner.settings != kept["settings"]:
        raise ValueError(
            f"{directory.path} was begun with other settings ({kept['settings']}), now it would be {learner.settings}: remove "
            "the directory to begin again"
        )
    directory.load(reached, *learner.parts())
    learner.take_up(reached, kept["state"])
    return learner, progress


def _yard() -> float:
    """Processor milliseconds of twenty products of two matrices."""
    matrix = torch.ones(_YARD, _YARD)
    started = time.process_time()
    for _ in range(20):
        matrix @ matrix
    return round(1000 * (time.process_time() - started), 3)


def _kept(directory: RunDirectory, step: int) -> dict[str, Any]:
    """What the checkpoint of a step holds besides tensors."""
    return dict(json.loads((directory.checkpoint(step) / "state.json").read_text(encoding="utf-8"))["extra"])


def _planned(progress: _Progress) -> list[int]:
    return [progress.planned] if progress.planned else []


def _seconds_per_step(learner: Learner) -> float:
    """Of a training that is thrown away."""
    before, timed = _PROBE
    for _ in range(before):
        learner.step(1.0)
    started = time.process_time()
    for _ in range(timed):
        learner.step(1.0)
    return max(1e-5, (time.process_time() - started) / timed)


def _train(
    cell: Cell,
    bench: ImageBench,
    learner: Learner,
    progress: _Progress,
    directory: RunDirectory,
    seen: Callable[[str], None],
) -> str | None:
    """Train to the end. Returns the sentence of a training that diverged, else None."""
    budget, left, process = 60 * cell.minutes, cell.moments[len(progress.curve) :], psutil.Process()
    gamma = 0.0 if cell.way == REFERENCE else WAYS[cell.way].gamma
    saved = progress.seconds
    while left:
        factor = min(1.0, (1 - progress.seconds / budget) / _DECAY)
        started = time.process_time()
        try:
            evaluations = learner.step(max(factor, 1e-3))
        except TrainingDiverged as failure:
            return str(failure)
        progress.seconds += time.process_time() - started
        progress.teacher_evaluations += evaluations
        if learner.steps % 20 == 0:
            progress.memory_mib = max(progress.memory_mib, process.memory_info().rss / 2**20)
        if learner.steps % 200 == 0:
            progress.yard_ms.append(_yard())
        if progress.seconds >= left[0]:
            left.pop(0)
            jumps = bench.of_student(learner.published(), gamma)
            progress.curve.append({"seconds": round(progress.seconds, 2), "steps": learner.steps, "jumps": jumps})
            distances = ", ".join(f"{steps}: {value['frechet']:.1f}" for steps, value in jumps.items())
            seen(f"{cell.name} at {progress.seconds:.0f} s, step {learner.steps:,}: {distances}")
        elif progress.seconds < saved + _SAVE_SECONDS:
            continue
        saved = progress.seconds
        extra = {"progress": asdict(progress), "state": learner.state(), "settings": learner.settings}
        directory.save(learner.steps, *learner.parts(), extra, progress.seconds)
    return None
