"""A measured value with its error bar."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

__all__ = ["Number", "mean_with_error"]


@dataclass(frozen=True)
class Number:
    """A measured value. error: its standard error, or None if none is known."""

    value: float
    error: float | None = None

    def __str__(self) -> str:
        if self.error is None or not math.isfinite(self.error):
            return f"{self.value:.4g}"
        digits = max(0, 1 - math.floor(math.log10(self.error))) if self.error > 0 else 3
        return f"{self.value:.{min(digits, 6)}f} ± {self.error:.{min(digits, 6)}f}"


def mean_with_error(values: Tensor) -> Number:
    """The mean of independent values (N,) and its standard error, sd/√N; no error for a single value."""
    values = values.double()
    error = float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else None
    return Number(float(values.mean()), error)
