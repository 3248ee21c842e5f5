"""How the ends of a jump, t and s, are drawn for the objectives that need no solver's grid."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from ctm.noise import karras_level, lognormal_levels

__all__ = ["KarrasPairs", "LognormalPairs", "Pairs"]


class Pairs(ABC):
    """Draws the two ends of n jumps: (t, s), each (n,) in float64, with sigma_min ≤ s ≤ t ≤ sigma_max."""

    @abstractmethod
    def __call__(
        self, n: int, sigma_min: float, sigma_max: float, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]: ...

    @property
    def only_to_end(self) -> bool:
        """Whether every jump ends at sigma_min, as a consistency model's jumps do."""
        return False


@dataclass(frozen=True)
class KarrasPairs(Pairs):
    """ξ_t uniform on [0, 1] and ξ_s uniform on [ξ_t, 1], in the Karras coordinate (`ctm.noise.karras_level`), as continuous CTM
    draws them (arXiv 2310.02279).

    rho: of the coordinate. to_end: the share of jumps with s = sigma_min, in [0, 1]; 1 for a consistency model. Raises ValueError
    for settings out of range."""

    rho: float = 7.0
    to_end: float = 0.0

    def __post_init__(self) -> None:
        if not 1 <= self.rho < math.inf:
            raise ValueError(f"rho must be at least 1 and finite, got {self.rho}")
        _check_share(self.to_end)

    def __call__(self, n: int, sigma_min: float, sigma_max: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        start, part, chance = torch.rand(3, n, generator=generator, dtype=torch.float64)
        xi = torch.stack([start, start + part * (1 - start)])
        t, s = karras_level(xi, sigma_min, sigma_max, self.rho).clamp(sigma_min, sigma_max)
        return t, _some_at_end(torch.minimum(s, t), chance, self.to_end, sigma_min)

    @property
    def only_to_end(self) -> bool:
        return self.to_end == 1


@dataclass(frozen=True)
class LognormalPairs(Pairs):
    """The larger and the smaller of two draws of exp(mean + std·z), z standard normal, brought into [sigma_min, sigma_max].

    The log-normal level of this convention is the logit-normal time of flow matching, in which MeanFlow (arXiv 2505.13447) and
    AYF (arXiv 2506.14603) draw, for data scaled to deviation 1. to_end: as of `KarrasPairs`. Raises ValueError for settings out
    of range."""

    mean: float = -1.2
    std: float = 1.2
    to_end: float = 0.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.mean) and 0 < self.std < math.inf):
            raise ValueError(f"mean must be finite and std above 0 and finite, got {self.mean} and {self.std}")
        _check_share(self.to_end)

    def __call__(self, n: int, sigma_min: float, sigma_max: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        z = torch.randn(2, n, generator=generator, dtype=torch.float64)
        levels = lognormal_levels(z, self.mean, self.std).clamp(sigma_min, sigma_max)
        chance = torch.rand(n, generator=generator, dtype=torch.float64)
        return levels.amax(0), _some_at_end(levels.amin(0), chance, self.to_end, sigma_min)

    @property
    def only_to_end(self) -> bool:
        return self.to_end == 1


def _check_share(to_end: float) -> None:
    if not 0 <= to_end <= 1:
        raise ValueError(f"to_end is a share of jumps, in [0, 1], got {to_end}")


def _some_at_end(s: Tensor, chance: Tensor, share: float, sigma_min: float) -> Tensor:
    return torch.where(chance < share, sigma_min, s)
