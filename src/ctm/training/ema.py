"""Exponential moving averages of weights."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch

__all__ = ["frozen_copy", "move_average", "warmed_decay"]

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
