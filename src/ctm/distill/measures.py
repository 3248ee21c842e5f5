"""What is measured of a teacher before anything is chosen: how few solver steps follow its flow, and how long it computes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from ctm.conditions import Condition, rows
from ctm.models import AnyModel
from ctm.models.protocol import denoiser_of
from ctm.noise import karras_grid
from ctm.progress import JobBar
from ctm.sampling import starting_noise
from ctm.solvers import walk

__all__ = ["FINE", "LEVELS", "NOISES", "TeacherWalks", "growth", "hiding_level", "noises_within", "teacher_walks"]

NOISES = 64
FINE = 64  # Heun steps of the walk that the others are compared with; its own error is some tenths of a percent
LEVELS = (4, 5, 6, 8, 10, 14, 18, 28, 40)
_ENOUGH = 0.005
_ENOUGH_LATE = 0.025  # where the time is over: no choice asks for less
_FEWER = (NOISES, 32, 16, 8, 4)
_MOST = 2 * FINE + 2 * sum(count - 1 for count in LEVELS)  # evaluations of a measurement
_MUCH, _NATS = 10.0, 0.05


@dataclass(frozen=True)
class TeacherWalks:
    """Walks of a teacher's flow from `NOISES` noises, or fewer where the teacher is slow, at sigma_max down to sigma_min.

    errors: by number of levels of the Karras grid, the root mean square difference of Heun's walk from the fine one, as a share
    of the ends' standard deviation. seconds: of one evaluation of the teacher for one image. ends: (noises, *shape), where the
    fine walk ends: samples of the teacher. sigma_max: where the walks begin. grows: whether an error of the teacher's network
    counts many times at high noise (`growth`)."""

    errors: dict[int, float]
    seconds: float
    ends: Tensor
    sigma_max: float = torch.inf
    grows: bool = False

    def levels(self, tolerance: float) -> int:
        """The smallest measured number of levels whose error is at most `tolerance`; the largest where none is."""
        fitting = [count for count, error in sorted(self.errors.items()) if error <= tolerance]
        return fitting[0] if fitting else max(self.errors)


@torch.no_grad()
def noises_within(teacher: AnyModel, condition: Condition, seconds: float) -> tuple[int, float]:
    """(number of noises, seconds of one evaluation of the teacher for one image): the most of 64, 32, … 4 on which
    `teacher_walks` ends within so many seconds, the least where none does. Takes two evaluations of 4 noises."""
    few = _FEWER[-1]
    x, t = starting_noise(teacher.shape, range(few), 0), torch.full((few,), float(teacher.sigma_min))
    denoise = denoiser_of(teacher, rows(condition, slice(few)))
    denoise(x, t)  # kernels are made in the first
    began = time.perf_counter()
    denoise(x, t)
    one = (time.perf_counter() - began) / few
    return next((count for count in _FEWER if count * one * _MOST <= seconds), few), one


@torch.no_grad()
def teacher_walks(
    teacher: AnyModel,
    condition: Condition = None,
    seed: int = 0,
    sigma_max: float | None = None,
    *,
    noises: int = NOISES,
    seconds: float = math.inf,
) -> TeacherWalks:
    """Walk the teacher's flow on grids of more and more levels, until the error is below half a percent; after `seconds`,
    until it is below 2.5 percent. A bar shows how far it is.

    sigma_max: where walks begin; None: the teacher's, or where the error of its network grows with the noise, the level at which
    hardly anything of a sample is left to be seen (`hiding_level`), if that is lower.
    condition: of at least `noises` samples, on the CPU, as far as the teacher takes it. Takes 2·64 evaluations of the teacher
    for the fine walk, and at most 250 for the others."""
    follow = partial(_walks, teacher, rows(condition, slice(noises)), seed, noises=noises, seconds=seconds)
    found = follow(float(teacher.sigma_max) if sigma_max is None else sigma_max)
    grows, lower = growth(teacher) > _MUCH, hiding_level(found.ends)
    if sigma_max is None and grows and lower < teacher.sigma_max:
        found = follow(lower)
    return replace(found, grows=grows)


def growth(teacher: AnyModel) -> float:
    """|c_out|/σ_d at the teacher's sigma_max: how many times an error of its network counts there. 1 for EDM's scalings;
    σ/σ_d for a network that predicts ε, because D = x − σ·F."""
    preconditioning = getattr(teacher, "preconditioning", None)
    if preconditioning is None:
        return 1.0
    _, c_out, _ = preconditioning.scalings(torch.tensor([float(teacher.sigma_max)]))
    return abs(float(c_out)) / float(teacher.sigma_data)


def hiding_level(samples: Tensor) -> float:
    """The noise level σ at which |x₀|²/(2σ²), in the mean over samples (n, …), is 0.05 nats: so far is the noisy sample's
    distribution from pure noise (Kullback–Leibler divergence). To three digits."""
    square = float(samples.double().square().flatten(1).sum(1).mean())
    return float(f"{math.sqrt(square / (2 * _NATS)):.3g}")


def _walks(
    teacher: AnyModel, condition: Condition, seed: int, sigma_max: float, *, noises: int, seconds: float
) -> TeacherWalks:
    start = sigma_max * starting_noise(teacher.shape, range(noises), seed)
    with JobBar("the teacher's flow", _MOST, unit="evaluations") as bar:
        follow = partial(_walked, teacher, start, condition, sigma_max, bar)
        began = time.perf_counter()
        fine = follow(FINE)
        taken = time.perf_counter() - began
        errors: dict[int, float] = {}
        for count in LEVELS:
            difference = follow(count - 1) - fine
            errors[count] = float(difference.square().mean().sqrt() / fine.std().clamp(min=1e-12))
            if errors[count] < (_ENOUGH if time.perf_counter() - began < seconds else _ENOUGH_LATE):
                break
        bar.finish()
    return TeacherWalks(errors, taken / (2 * FINE * noises), fine, sigma_max)


def _walked(
    teacher: AnyModel, start: Tensor, condition: Condition, sigma_max: float, bar: JobBar, steps: int
) -> Tensor:
    levels = karras_grid(steps, teacher.sigma_min, sigma_max, dtype=start.dtype)
    return walk(_counted(denoiser_of(teacher, condition), bar), start, levels[:, None].expand(-1, len(start)))


def _counted(denoise: Callable[[Tensor, Tensor], Tensor], bar: JobBar) -> Callable[[Tensor, Tensor], Tensor]:
    """The same denoiser, each evaluation of which moves the bar."""

    def counted(x: Tensor, t: Tensor) -> Tensor:
        result = denoise(x, t)
        bar.reach(bar.done + 1)
        return result

    return counted
