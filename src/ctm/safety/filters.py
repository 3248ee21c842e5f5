"""What a filter is: a function from pictures to scores by category, with a name, a checksum and limits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

__all__ = ["Filter", "Limits", "Scores"]

Scores = Mapping[str, float]


@dataclass(frozen=True)
class Limits:
    """smallest: the shorter side in pixels below which the filter's scores mean nothing. batch: most pictures of one call."""

    smallest: int = 1
    batch: int = 8


class Filter(Protocol):
    """Scores of pictures, in [0, 1] for each of its categories; more is worse.

    name: as the policy names it. checksum: of what decides its scores (SHA-256 of its weights, or of a list), for the record. A
    filter may be slow, fail or return anything: `Screen` then says no."""

    @property
    def name(self) -> str: ...

    @property
    def checksum(self) -> str: ...

    @property
    def categories(self) -> tuple[str, ...]: ...

    @property
    def limits(self) -> Limits: ...

    def __call__(self, images: Sequence[np.ndarray]) -> Sequence[Scores]:
        """One mapping for each image, uint8 (H, W, 3), RGB, which must not be written to."""
        ...
