"""What `ctm bench samplers` measures: every sampler of `ctm.sampling` at several numbers of network evaluations, on the
Karras grid."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from ctm import sampling
from ctm.models.protocol import RangedJumper
from ctm.noise import karras_grid, to_zero

__all__ = ["CHURN", "NAMES", "Cell", "cells"]

CHURN: dict[str, Any] = {
    "churn": 40.0,
    "churn_min": 0.05,
    "churn_max": 50.0,
    "churn_noise": 1.003,
}  # EDM's for ImageNet 64, table 5
_TWO_EACH = ("heun", "heun_churn", "midpoint")
_DENOISERS: dict[str, Callable[..., Tensor]] = {
    "euler": sampling.euler,
    "heun": sampling.heun,
    "heun_churn": partial(sampling.heun, **CHURN),
    "midpoint": sampling.midpoint,
    "dpmpp_2m": sampling.dpmpp_2m,
    "ancestral": sampling.ancestral,
    "dpmpp_2m_sde": sampling.dpmpp_2m_sde,
}
NAMES = ("gamma", "gamma_code", "two_level", *_DENOISERS)


@dataclass(frozen=True)
class Cell:
    """One sampler at one number of evaluations, on `levels`. gamma: for γ-sampling, else None."""

    sampler: str
    gamma: float | None
    evaluations: int
    levels: Tensor
    method: Callable[..., Tensor]

    @property
    def name(self) -> str:
        gamma = "" if self.gamma is None else f" {self.gamma:g}"
        return f"{self.sampler}{gamma}/{self.evaluations}"

    @property
    def record(self) -> dict[str, Any]:
        """What a reader needs to repeat it."""
        levels = [float(f"{level:.6g}") for level in self.levels.tolist()]
        return {
            "sampler": self.sampler,
            "gamma": self.gamma,
            "evaluations": self.evaluations,
            "levels": levels,
            "options": CHURN if self.sampler == "heun_churn" else {},
        }


def cells(model: RangedJumper, names: Sequence[str], evaluations: Sequence[int], gammas: Sequence[float]) -> list[Cell]:
    """A cell for each sampler (each γ) and each number of evaluations, or the next lower number that the sampler can make.
    Fewest evaluations come first. A sampler that cannot make so few has no cell.

    γ-sampling at γ = 1 is `ctm.sampling.consistency`. A single jump adds no noise and is listed once, for γ = 0. The code's
    form differs from the paper's only for γ in between. two_level: 2 evaluations, from half of the level between, where γ =
    0.866 stops. Samplers of the denoiser need two noise levels and then step to 0. Raises ValueError for an unknown name or
    γ."""
    unknown = [name for name in names if name not in NAMES]
    if unknown or not names:
        raise ValueError(f"--samplers knows {', '.join(NAMES)}; not {', '.join(unknown) or 'none at all'}")
    if min(evaluations) < 1:
        raise ValueError(f"--steps must be at least 1, got {min(evaluations)}")
    found: dict[str, Cell] = {}
    for count in sorted(evaluations):
        for name in names:
            made = _denoising(model, name, count) if name in _DENOISERS else _jumping(model, name, count, gammas)
            found |= {cell.name: cell for cell in made}
    return list(found.values())


def _jumping(model: RangedJumper, name: str, count: int, gammas: Sequence[float]) -> list[Cell]:
    levels = karras_grid(count, model.sigma_min, model.sigma_max, dtype=torch.float32)
    if name == "two_level":
        if count != 2:
            return []
        start, middle, end = levels
        return [Cell(name, None, 2, torch.stack([start, middle / 2, middle, end]), sampling.two_level)]
    sampling.gamma_plan([1.0, 0.5], max(gammas, key=lambda gamma: abs(gamma - 0.5)))  # checks γ before anything is made
    if count == 1:
        return [Cell(name, 0.0, 1, levels, sampling.gamma)] if name == "gamma" else []
    form: Literal["paper", "code"] = "paper" if name == "gamma" else "code"
    wanted = [gamma for gamma in sorted(set(gammas)) if form == "paper" or 0 < gamma < 1]
    return [Cell(name, gamma, count, levels, partial(sampling.gamma, gamma=gamma, form=form)) for gamma in wanted]


def _denoising(model: RangedJumper, name: str, count: int) -> list[Cell]:
    """As many levels as the evaluations allow, and 0. Heun's method steps to 0 with one evaluation."""
    points = (count + (name != "midpoint")) // 2 if name in _TWO_EACH else count
    if points < 2:
        return []
    levels = karras_grid(points - 1, model.sigma_min, model.sigma_max, dtype=torch.float32)
    made = {"midpoint": 2 * points}.get(name, 2 * points - 1 if name in _TWO_EACH else points)
    return [Cell(name, None, made, to_zero(levels), _DENOISERS[name])]
