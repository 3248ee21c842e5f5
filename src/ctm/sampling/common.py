"""What every sampler shares: the step a callback sees, the way to cancel, and the checks on grid and state."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Callback", "Cancelled", "Noise", "Step", "check_start", "fresh_noise", "level_values"]


class Cancelled(Exception):
    """Raised by a callback to stop a sampler; the sampler lets it through."""


@dataclass(frozen=True)
class Step:
    """What a callback receives after each step: its index from 0, the levels t → s it went between (0-dim tensors), the
    state x after it (at the grid's next level), and the denoised image where one was computed."""

    index: int
    t: Tensor
    s: Tensor
    x: Tensor
    denoised: Tensor | None


Callback = Callable[[Step], object]
Noise = Callable[[Tensor], Tensor]


def check_start(x: Tensor, grid: Tensor, *, zero_end: bool) -> Tensor:
    """The grid in x's dtype and on its device, checked: (N + 1,), strictly decreasing, positive but for an allowed final 0.

    Raises ValueError in sentences."""
    if not isinstance(grid, Tensor) or grid.dim() != 1 or len(grid) < 2:
        shape = tuple(grid.shape) if isinstance(grid, Tensor) else type(grid).__name__
        raise ValueError(f"grid must be a tensor of at least two noise levels, e.g. karras_grid(4), got {shape}")
    if not x.is_floating_point():
        raise ValueError(f"x must be floating point at level grid[0], got {x.dtype}")
    if not bool(grid.isfinite().all()) or bool((grid[1:] >= grid[:-1]).any()):
        raise ValueError(
            f"grid must hold finite levels that decrease strictly, got {[round(v, 6) for v in grid.tolist()]}"
        )
    if float(grid[-1]) < 0 or (float(grid[-1]) == 0 and not zero_end):
        allowed = "or 0" if zero_end else "(jumps end at sigma_min, not at 0)"
        raise ValueError(f"the last level of the grid must be positive {allowed}, got {float(grid[-1])}")
    return grid.to(x)


def level_values(x: Tensor, grid: Tensor) -> list[float]:
    """The levels as numbers, rounded to x's precision as `check_start` rounds them. Read once, where the grid is."""
    return grid.to(x.dtype).tolist()


def fresh_noise(noise: Noise | None) -> Noise:
    """The caller's source of standard normal noise, or torch's."""
    return noise or torch.randn_like
