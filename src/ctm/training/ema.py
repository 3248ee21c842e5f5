"""Exponential moving averages of weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch.optim.swa_utils import get_ema_multi_avg_fn

from ctm.networks.adapters import copy_sharing

__all__ = [
    "Average",
    "Decay",
    "PowerFunction",
    "frozen_copy",
    "move_average",
    "power_exponent",
    "warmed_decay",
]

Module = TypeVar("Module", bound=torch.nn.Module)


def frozen_copy(model: Module) -> Module:
    """A copy without gradients, in eval mode: the start of an average. Weights under adapters are not copied but shared."""
    return copy_sharing(model).requires_grad_(False).eval()


def warmed_decay(decay: float, step: int) -> float:
    """min(decay, (1 + n)/(10 + n)) in step n from 0: early weights are forgotten quickly."""
    return min(decay, (1 + step) / (10 + step))


class Average(ABC):
    """How an average of weights forgets: average ← β·average + (1 − β)·weights after each step."""

    @abstractmethod
    def at(self, step: int) -> float:
        """β in step `step`, from 0."""

    @property
    @abstractmethod
    def name(self) -> str:
        """The name of its files, without spaces."""


@dataclass(frozen=True)
class Decay(Average):
    """β = min(decay, (1 + n)/(10 + n)) in step n: the last 1/(1 − decay) steps, or so. decay in [0, 1]."""

    decay: float

    def __post_init__(self) -> None:
        if not 0 <= self.decay <= 1:
            raise ValueError(f"the decay of an average must be in [0, 1], got {self.decay}")

    def at(self, step: int) -> float:
        return warmed_decay(self.decay, step)

    @property
    def name(self) -> str:
        return f"decay-{self.decay:g}"


@dataclass(frozen=True)
class PowerFunction(Average):
    """The profile of EDM2 (arXiv 2312.02696, section 3.1): after t steps the weights of step τ count as τ^γ, whatever t, so that
    the average always spans the same share of the run.

    β(t) = (1 − 1/t)^(γ+1) in the t-th step, from 1. sigma_rel: the profile's standard deviation as a share of the run,
    σ_rel = √(γ+1)/((γ+2)·√(γ+3)), in (0, 0.288]; 0.05 to 0.1 is usual, and smaller remembers less.
    """

    sigma_rel: float

    def __post_init__(self) -> None:
        power_exponent(self.sigma_rel)

    def at(self, step: int) -> float:
        return (1 - 1 / (step + 1)) ** (power_exponent(self.sigma_rel) + 1)

    @property
    def name(self) -> str:
        return f"power-{self.sigma_rel:g}"


def power_exponent(sigma_rel: float) -> float:
    """γ ≥ 0 of the power function τ^γ on [0, 1] whose standard deviation is sigma_rel: the positive root of
    (γ+2)²·(γ+3) = (γ+1)/σ_rel² (arXiv 2312.02696, appendix C). Raises ValueError outside (0, 1/√12]; there γ = 0."""
    if not 0 < sigma_rel <= 12**-0.5:
        raise ValueError(f"sigma_rel of an average must be in (0, 0.288], got {sigma_rel}")
    inverse = sigma_rel**-2
    roots = np.roots([1.0, 7.0, 16.0 - inverse, 12.0 - inverse])
    return max(float(roots.real.max()), 0.0)


@torch.no_grad()
def move_average(average: torch.nn.Module, model: torch.nn.Module, decay: float) -> None:
    """average ← decay·average + (1 − decay)·model, in place; buffers are copied."""
    pairs = [
        (k, c) for k, c in zip(average.parameters(), model.parameters(), strict=True) if k is not c
    ]  # not the shared
    get_ema_multi_avg_fn(decay)(
        [kept for kept, _ in pairs], [current for _, current in pairs], 0
    )  # it looks at no number
    for buffer, newest in zip(average.buffers(), model.buffers(), strict=True):
        if buffer is not newest:
            buffer.copy_(newest)
