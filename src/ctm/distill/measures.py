"""What is measured of a teacher before anything is chosen: how few solver steps follow its flow, and how long it computes."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ctm.conditions import Condition
from ctm.models import AnyModel
from ctm.models.protocol import denoiser_of
from ctm.noise import karras_grid
from ctm.sampling import starting_noise
from ctm.solvers import walk

__all__ = ["FINE", "LEVELS", "NOISES", "TeacherWalks", "teacher_walks"]

NOISES = 64
FINE = 64  # Heun steps of the walk that the others are compared with; its own error is some tenths of a percent
LEVELS = (4, 5, 6, 8, 10, 14, 18, 28, 40)
_ENOUGH = 0.005


@dataclass(frozen=True)
class TeacherWalks:
    """Walks of a teacher's flow from `NOISES` noises at sigma_max down to sigma_min.

    errors: by number of levels of the Karras grid, the root mean square difference of Heun's walk from the fine one, as a share
    of the ends' standard deviation. seconds: of one evaluation of the teacher for one image. ends: (NOISES, *shape), where the
    fine walk ends: samples of the teacher."""

    errors: dict[int, float]
    seconds: float
    ends: Tensor

    def levels(self, tolerance: float) -> int:
        """The smallest measured number of levels whose error is at most `tolerance`; the largest where none is."""
        fitting = [count for count, error in sorted(self.errors.items()) if error <= tolerance]
        return fitting[0] if fitting else max(self.errors)


@torch.no_grad()
def teacher_walks(teacher: AnyModel, condition: Condition = None, seed: int = 0) -> TeacherWalks:
    """Walk the teacher's flow on grids of more and more levels, until the error is below half a percent.

    condition: of the `NOISES` samples, on the CPU, as far as the teacher takes it. Takes 2·64 evaluations of the teacher for
    the fine walk, and at most 250 for the others."""
    start = teacher.sigma_max * starting_noise(teacher.shape, range(NOISES), seed)
    follow = partial(_walked, teacher, start, condition)
    began = time.perf_counter()
    fine = follow(FINE)
    seconds = (time.perf_counter() - began) / (2 * FINE * NOISES)
    errors: dict[int, float] = {}
    for count in LEVELS:
        difference = follow(count - 1) - fine
        errors[count] = float(difference.square().mean().sqrt() / fine.std().clamp(min=1e-12))
        if errors[count] < _ENOUGH:
            break
    return TeacherWalks(errors, seconds, fine)


def _walked(teacher: AnyModel, start: Tensor, condition: Condition, steps: int) -> Tensor:
    levels = karras_grid(steps, teacher.sigma_min, teacher.sigma_max, dtype=start.dtype)
    return walk(denoiser_of(teacher, condition), start, levels[:, None].expand(-1, len(start)))
