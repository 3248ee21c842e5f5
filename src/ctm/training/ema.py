"""Exponential moving averages of weights."""

from __future__ import annotations

import copy
import math
from typing import Literal, TypeVar

import torch

__all__ = [
    "adaptive_decay",
    "distillation_points",
    "ema_scales",
    "frozen_copy",
    "move_average",
    "progressive_points",
    "warmed_decay",
]

Module = TypeVar("Module", bound=torch.nn.Module)


def frozen_copy(model: Module) -> Module:
    """A copy without gradients, in eval mode: the start of an average."""
    return copy.deepcopy(model).requires_grad_(False).eval()


def warmed_decay(decay: float, step: int) -> float:
    """min(decay, (1 + n)/(10 + n)) in step n from 0: early weights are forgotten quickly."""
    return min(decay, (1 + step) / (10 + step))


@torch.no_grad()
def move_average(average: torch.nn.Module, model: torch.nn.Module, decay: float) -> None:
    """average ← decay·average + (1 − decay)·model, in place; buffers are copied."""
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
    for kept, current in zip(average.buffers(), model.buffers(), strict=True):
        kept.copy_(current)


def progressive_points(step: int, total_steps: int, start: int, end: int) -> int:
    """The number of grid intervals in a step of consistency training (arXiv 2303.01469, appendix C), one less than the
    points: max(1, ⌈√(k/K·((end + 1)² − start²) + start²) − 1⌉); from start to end in K = total_steps steps."""
    grown = step / total_steps * ((end + 1) ** 2 - start**2) + start**2
    return max(1, math.ceil(math.sqrt(grown) - 1))


def adaptive_decay(start_decay: float, start: int, intervals: int) -> float:
    """exp(start·ln(start_decay)/intervals): the decay of consistency training (appendix C), nearer 1 on finer grids."""
    return math.exp(start * math.log(start_decay) / intervals)


def distillation_points(step: int, start: int, stage_steps: int) -> int:
    """The number of steps of the student in progressive distillation: `start`, halved each `stage_steps` steps down to 2,
    after which the stages are twice as long, down to 1 (official code, 'progdist')."""
    halved = max(start // 2 ** (step // stage_steps), 2)
    if halved > 2:
        return halved
    late = max(step - stage_steps * (math.log2(start) - 1), 0) // (2 * stage_steps)
    return max(2 // 2 ** int(late), 1)


def ema_scales(
    step: int,
    *,
    decay_mode: Literal["fixed", "adaptive"],
    points_mode: Literal["fixed", "progressive", "progdist"],
    start_decay: float,
    start_points: int,
    end_points: int = 150,
    total_steps: int = 1000,
    stage_steps: int = 100,
) -> tuple[float, int]:
    """(target decay, grid points) in a training step: the four schedules of the official code (create_ema_and_scales_fn).

    decay_mode "adaptive" goes with points_mode "progressive" only; "progdist" has no average (decay 1: its target moves
    at the stages). CTM itself keeps both fixed. Raises ValueError for another combination."""
    if (decay_mode, points_mode) == ("fixed", "fixed"):
        return start_decay, start_points
    if (decay_mode, points_mode) == ("fixed", "progdist"):
        return 1.0, distillation_points(step, start_points, stage_steps)
    if decay_mode not in ("fixed", "adaptive") or points_mode != "progressive":
        raise ValueError(
            f"no schedule has decay_mode {decay_mode!r} and points_mode {points_mode!r}: fixed goes with fixed, progressive "
            "and progdist, adaptive with progressive"
        )
    intervals = progressive_points(step, total_steps, start_points, end_points)
    decay = start_decay if decay_mode == "fixed" else adaptive_decay(start_decay, start_points, intervals)
    return decay, intervals + 1
