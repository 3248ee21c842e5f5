"""Distances d(a, b) between batches of samples: (B, …), (B, …) -> (B,)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from ctm.objectives.base import Networks

__all__ = ["Distance", "PseudoHuber", "Squared"]


class Distance(ABC):
    """d(a, b) of two batches (B, …), one number for each sample (B,)."""

    @abstractmethod
    def __call__(self, a: Tensor, b: Tensor) -> Tensor: ...

    def between(self, networks: Networks | None, a: Tensor, b: Tensor) -> Tensor:
        """The same with an objective's `Networks` at hand, for distances that look through one of these."""
        return self(a, b)


@dataclass(frozen=True)
class Squared(Distance):
    """Mean over coordinates of (a − b)²: L2 in data space."""

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        return (a - b).square().flatten(1).mean(1)


@dataclass(frozen=True)
class PseudoHuber(Distance):
    """√(r² + c²) − c, r the root mean square of a − b over coordinates: the pseudo-Huber distance of arXiv 2310.14189
    (eq. 7), ‖·‖ and its constant divided by √D for D coordinates.

    c > 0: where the distance turns from quadratic to linear, in the data's units. That paper's 0.00054·√D is c = 0.00054.
    """

    c: float = 0.03

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        return ((a - b).square().flatten(1).mean(1) + self.c**2).sqrt() - self.c
