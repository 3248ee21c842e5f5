"""How `Matching` draws t, u and s other than from a grid: consistency tuning, whose gap t − u shrinks in a run."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from ctm.noise import Times, karras_level, lognormal_levels

__all__ = ["MatchingTimes", "ShrinkingGap"]

_RHO = 7.0


class MatchingTimes(ABC):
    """(n, step of the objective from 0, sigma_min, sigma_max, generator) -> the times of n samples, float64."""

    @abstractmethod
    def __call__(self, n: int, step: int, sigma_min: float, sigma_max: float, generator: torch.Generator) -> Times: ...


@dataclass(frozen=True)
class ShrinkingGap(MatchingTimes):
    """Consistency tuning's times (ECT, arXiv 2406.14548): ln t ~ N(mean, std²), and u below it by a gap that shrinks in stages,

        u = t·max(0, 1 − n(t)/q^a),   n(t) = 1 + k/(1 + e^(b·t)),   a = 1 + ⌊step/every⌋ up to `stages`

    every: steps of a stage. q > 1: by how much the gap shrinks from one stage to the next. stages: from the last one on the gap
    stays. k ≥ 0, b ≥ 0: make the gap relatively larger at low noise. mean, std: of ln t. t is kept in [2·sigma_min, sigma_max]
    and u at sigma_min or above, so that the gap is never zero. s is uniform in the Karras coordinate between u and sigma_min;
    with `s: end`, as in the paper, `Matching` puts it at sigma_min. In the first stage u is nearly always sigma_min, and the
    target the data: the loss of a denoiser. Raises ValueError for settings out of range.
    """

    every: int
    q: float = 2.0
    stages: int = 8
    k: float = 8.0
    b: float = 1.0
    mean: float = -1.1
    std: float = 2.0

    def __post_init__(self) -> None:
        if self.every < 1 or self.stages < 1:
            raise ValueError(f"every and stages must be at least 1, got {self.every} and {self.stages}")
        if not 1 < self.q < math.inf:
            raise ValueError(f"q divides the gap from stage to stage, so it must be above 1 and finite, got {self.q}")
        if not (0 <= self.k < math.inf and 0 <= self.b < math.inf):
            raise ValueError(f"k and b must be at least 0 and finite, got {self.k} and {self.b}")
        if not (math.isfinite(self.mean) and 0 < self.std < math.inf):
            raise ValueError(f"mean must be finite and std above 0 and finite, got {self.mean} and {self.std}")

    def stage(self, step: int) -> int:
        """a in that step, from 1 to `stages`."""
        return min(1 + step // self.every, self.stages)

    def lower(self, t: Tensor, step: int) -> Tensor:
        """u of the formula, for levels t of any shape; 0 is possible."""
        relative = (1 + self.k * torch.sigmoid(-self.b * t)) / self.q ** self.stage(step)
        return t * (1 - relative).clamp(min=0)

    def __call__(self, n: int, step: int, sigma_min: float, sigma_max: float, generator: torch.Generator) -> Times:
        z = torch.randn(n, generator=generator, dtype=torch.float64)
        share = torch.rand(n, generator=generator, dtype=torch.float64)
        t = lognormal_levels(z, self.mean, self.std).clamp(min(2 * sigma_min, sigma_max), sigma_max)
        u = self.lower(t, step).clamp(min=sigma_min)
        top, bottom = sigma_max ** (1 / _RHO), sigma_min ** (1 / _RHO)
        start = (u ** (1 / _RHO) - top) / (bottom - top)
        s = karras_level(start + share * (1 - start), sigma_min, sigma_max, _RHO)
        return Times(torch.stack([t, u]), torch.minimum(s.clamp(min=sigma_min), u))
