"""More ends of the walks of `Matching`: on its way from t to u a walk passes levels that can stand in the place of u."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ctm.noise import Times, karras_level
from ctm.objectives.rows import Moves

__all__ = ["WalkEnd", "draw_levels_passed", "levels_below"]


@dataclass(frozen=True)
class WalkEnd:
    """A level that walks pass, as u. step (B,): int64, after how many of the walk's steps, from 1. times: t, this u, and s, each
    (B,). moves: as of `MatchingDraw`."""

    step: Tensor
    times: Times
    moves: Mapping[str, Moves]

    def rows(self, part: slice) -> WalkEnd:
        moves = {name: moved.part(part) for name, moved in self.moves.items()}
        return WalkEnd(self.step[part], self.times.rows(part), moves)

    def of(self, states: Tensor) -> Tensor:
        """x at this u, (B, …), of the states (k, B, …) after each step."""
        return states[self.step - 1, torch.arange(len(self.step), device=states.device)]


def draw_levels_passed(path: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(step, u): for each walk along path (k + 1, B) a step, uniform on 1 … k, and the level after it, each (B,)."""
    steps, count = len(path) - 1, path.shape[1]
    step = torch.randint(1, steps + 1, (count,), generator=generator)
    return step, path[step, torch.arange(count)]


def levels_below(
    u: Tensor, grid: Tensor | None, sigma_min: float, sigma_max: float, rho: float, generator: torch.Generator
) -> Tensor:
    """s (B,) for each u (B,): uniform on the levels of the grid (N,) from u to its end (sony/ctm, cm/resample.py), or, without a
    grid, uniform in the Karras coordinate from u to sigma_min."""
    share = torch.rand(len(u), generator=generator, dtype=torch.float64)
    if grid is not None:
        first = torch.searchsorted(-grid, -u.contiguous())
        return grid[first + (share * (len(grid) - first)).long()]
    top, bottom = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    start = (u.double() ** (1 / rho) - top) / (bottom - top)
    s = karras_level(start + share * (1 - start), sigma_min, sigma_max, rho).clamp(min=sigma_min).to(u.dtype)
    return torch.minimum(s, u)
