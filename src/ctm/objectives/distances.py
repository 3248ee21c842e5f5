"""Distances d(a, b) between batches of samples: (B, …), (B, …) -> (B,)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

__all__ = ["PseudoHuber", "Squared"]


@dataclass(frozen=True)
class Squared:
    """Mean over coordinates of (a − b)²: L2 in data space."""

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        return (a - b).square().flatten(1).mean(1)


@dataclass(frozen=True)
class PseudoHuber:
    """√(‖a − b‖² + κ²) − κ with κ = c·√D for D coordinates (arXiv 2310.14189, eq. 7), divided by √D.

    c: where the distance turns from quadratic to linear, in units of the root mean square difference; 0.03 in that paper,
    whose κ is 0.00054·√D for images in [-1, 1] at CIFAR-10's size… the fraction is the user's to choose.
    """

    c: float = 0.03

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        return ((a - b).square().flatten(1).mean(1) + self.c**2).sqrt() - self.c


