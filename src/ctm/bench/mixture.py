"""Ways to teach a jump compared with the exact flow of a Gaussian mixture, at equal teacher evaluations and at equal seconds."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ctm.bench.results import Results
from ctm.bench.ways import WAYS, Place, in_words
from ctm.models import TrajectoryModel
from ctm.models.protocol import Jumper
from ctm.networks import MLP
from ctm.noise import karras_grid
from ctm.objectives import Objective
from ctm.sampling import gamma
from ctm.teachers import GaussianMixture
from ctm.training.ema import frozen_copy, move_average, warmed_decay
from ctm.training.step import LossModule, backward, draw_batch, step_generator

__all__ = ["STEPS", "Budget", "Truth", "mixture", "run_mixture"]

STEPS = (1, 2, 4, 8)
_BATCH, _RATE = 256, 2e-3
_GRID = {"grid_points": 40, "max_solver_steps": 13}
_PROBE = (3, 10)


@dataclass(frozen=True)
class Budget:
    """What each run may use: evaluations of the teacher on one image, and seconds of processor time."""

    evaluations: int = 3_000
    seconds: float = 20.0


def mixture() -> GaussianMixture:
    """A mixture of three overlapping components in the plane, about four standard deviations apart."""
    means = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
    means = 0.7 * means / means.norm(dim=1, keepdim=True)
    return GaussianMixture(means, 0.35, torch.tensor([0.25, 0.35, 0.40]))


class Truth:
    """The exact flow from `count` draws of noise, and noisy data at eight levels. Students are measured with it."""

    def __init__(self, teacher: GaussianMixture, count: int = 2000) -> None:
        self.teacher = teacher
        x0, generator = teacher.sample(count, seed=10**6), torch.Generator().manual_seed(10**6)
        noise = torch.randn(x0.shape, generator=generator)
        self.start = x0 + 80 * noise
        self.end = teacher.jump(self.start, torch.full((count,), 80.0), torch.full((count,), 0.002))
        self.levels = karras_grid(7).repeat(count // 8)
        self.noisy = x0[: len(self.levels)] + self.levels[:, None] * noise[: len(self.levels)]
        self.denoised = teacher.denoise(self.noisy, self.levels)

    @torch.no_grad()
    def errors(self, student: Jumper) -> dict[str, float]:
        """Root mean square errors, in units of the data's standard deviation: of the flow after 1, 2, 4 and 8 jumps, and of D."""

        def size(difference: Tensor) -> float:
            return float(difference.square().mean().sqrt()) / self.teacher.sigma_data

        found = {f"{steps}": size(gamma(student, self.start, karras_grid(steps)) - self.end) for steps in STEPS}
        return {**found, "denoiser": size(student.denoise(self.noisy, self.levels) - self.denoised)}


def run_mixture(
    results: Results,
    ways: Sequence[str],
    *,
    budget: Budget,
    seeds: Sequence[int],
    count: int = 2000,
    progress: Callable[[list[Any]], Any] = lambda runs: runs,
) -> None:
    """Run every way that needs no weights of a teacher, with each seed. What the results hold already is passed over.
    count: samples by which students are measured."""
    teacher = mixture()
    truth = Truth(teacher, count)
    runs = [
        (way, seed)
        for seed, way in itertools.product(seeds, ways)
        if WAYS[way].on_mixture and _name(way, seed) not in results.entries
    ]
    for way, seed in progress(runs):
        entry = {"part": "mixture", "way": way, "seed": seed, "budget": vars(budget)}
        results.add(_name(way, seed), entry | _within(budget, way, teacher, truth, seed))


def _name(way: str, seed: int) -> str:
    return f"mixture/{way}/{seed}"


def _within(budget: Budget, way: str, teacher: GaussianMixture, truth: Truth, seed: int) -> dict[str, Any]:
    """Train until both budgets are used, or the seconds alone where the teacher is not asked. Returns the errors at the moment
    each budget is used."""
    place = Place(_GRID, *([_steps(budget, way, teacher, seed)] if WAYS[way].by_steps else []))
    objectives = WAYS[way].objectives(place)
    found: dict[str, Any] = {"settings": in_words(objectives), "planned": place.steps if WAYS[way].by_steps else 0}
    wanted = {"equal_seconds"} | ({"equal_evaluations"} if any(o.needs_teacher for o in objectives) else set())
    evaluations, used = 0, 0.0
    last = time.process_time()
    for step, (average, walked) in enumerate(_training(objectives, teacher, seed, WAYS[way].rate), start=1):
        used, evaluations = used + time.process_time() - last, evaluations + walked
        spent = {"equal_evaluations": evaluations >= budget.evaluations, "equal_seconds": used >= budget.seconds}
        for name in [name for name in sorted(wanted) if spent[name]]:
            wanted.remove(name)
            about = {"steps": step, "evaluations": evaluations, "seconds": round(used, 2)}
            found[name] = {**about, "errors": truth.errors(average)}
        if not wanted:
            return found
        last = time.process_time()
    raise AssertionError("training goes on until both budgets are used")


def _steps(budget: Budget, way: str, teacher: GaussianMixture, seed: int) -> int:
    """About as many steps as the seconds allow."""
    before, timed = _PROBE
    training = _training(WAYS[way].objectives(Place(_GRID)), teacher, seed, WAYS[way].rate)
    for _ in range(before):
        next(training)
    started = time.process_time()
    for _ in range(timed):
        next(training)
    return max(1, int(budget.seconds * timed / max(1e-5, time.process_time() - started)))


def _training(
    objectives: list[Objective], teacher: GaussianMixture, seed: int, rate: float
) -> Iterator[tuple[Any, int]]:
    """Endless training steps: the averaged student, and the teacher's evaluations in the step."""
    torch.manual_seed(seed)
    network = MLP(teacher.shape, width=128, blocks=3, embedding=64)
    student = TrajectoryModel(network, shape=teacher.shape, sigma_data=teacher.sigma_data)
    module, target, average = LossModule(student, objectives), frozen_copy(student), frozen_copy(student)
    optimizer = torch.optim.RAdam(student.parameters(), lr=rate * _RATE)
    for step in itertools.count():
        x0 = teacher.sample(_BATCH, seed=(seed << 32) + step)
        generator = step_generator(seed, step)
        rows = {"total": _BATCH, "part": slice(0, _BATCH), "condition_dropout": 0.0, "step": step}
        batch = draw_batch(objectives, student, x0, None, generator=generator, **rows)  # type: ignore[arg-type]
        losses = module(batch, target, teacher)
        optimizer.zero_grad()
        backward(module, losses)
        optimizer.step()
        move_average(target, student, 0.95)
        move_average(average, student, warmed_decay(0.995, step))
        walked = zip(objectives, batch.draws, strict=True)
        yield average, sum(objective.teacher_evaluations(draw) for objective, draw in walked)
