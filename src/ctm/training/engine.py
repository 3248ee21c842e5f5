"""How a run computes, apart from what: precision, pieces of a batch, clipping."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

__all__ = ["EngineSettings", "ScaledOptimizer", "set_precision"]

_AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(kw_only=True)
class EngineSettings:
    """How to compute.

    Args:
        precision: in which the networks compute: fp32, bf16, or fp16 with scaled losses. Weights, averages, the scalings
            around the networks and the losses stay float32.
        accumulate: pieces into which each batch is cut; their gradients are averaged before the optimiser's step.
        clip_gradient_norm: gradients of a larger total norm are scaled down to this one; unset: none are.
    """

    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    accumulate: int = 1
    clip_gradient_norm: float | None = None

    def __post_init__(self) -> None:
        if self.accumulate < 1:
            raise ValueError(f"engine.accumulate must be at least 1, got {self.accumulate}")
        if self.clip_gradient_norm is not None and not self.clip_gradient_norm > 0:
            raise ValueError(f"engine.clip_gradient_norm must be above 0 or unset, got {self.clip_gradient_norm}")


def set_precision(models: Iterable[Any], precision: Literal["fp32", "bf16", "fp16"]) -> None:
    """Let the models' networks compute so. A teacher that is no network of ours (a mixture) computes as it always does."""
    for model in models:
        if hasattr(model, "autocast"):
            model.autocast = _AUTOCAST[precision]


class ScaledOptimizer:
    """An optimiser, the scale of the losses whose gradients it gets (fp16), and the norm to which it clips them.

    Gradients of `scale` times the loss are brought back to the loss's own before they are measured and clipped. Where they
    overflowed, the step leaves the weights alone and halves the scale. The scale is part of the state that a checkpoint
    keeps, or a continued run would take other steps."""

    def __init__(self, optimizer: Any, device: torch.device, settings: EngineSettings) -> None:
        self.optimizer = optimizer
        self.clip = settings.clip_gradient_norm
        self.scaler = torch.amp.GradScaler(device.type, enabled=settings.precision == "fp16")
        self.scaler.scale(torch.ones((), device=device))  # it makes its state at the first use, which is else in a step

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self.optimizer.param_groups

    @property
    def scale(self) -> float:
        """By what the losses are to be multiplied; 1 but for fp16."""
        return self.scaler.get_scale()

    @property
    def state(self) -> Any:
        """The optimiser's tensors, by parameter."""
        return self.optimizer.state

    def zero_grad(self) -> None:
        self.optimizer.zero_grad()

    def step(self, allows: Callable[[Tensor], bool] = lambda norm: True) -> tuple[Tensor, bool]:
        """Move the weights, where `allows` says so of the gradients' total norm before clipping. Returns that norm, and
        whether the weights moved."""
        gradients = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        before = self.scale
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.get_total_norm(gradients)
        if not allows(norm):
            self.scaler.update()
            return norm, False
        if self.clip is not None:
            torch._foreach_mul_(gradients, (self.clip / (norm + 1e-6)).clamp(max=1.0))
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return norm, self.scale >= before

    def state_dict(self) -> dict[str, Any]:
        state = self.optimizer.state_dict()
        return {**state, "scaler": self.scaler.state_dict()} if self.scaler.is_enabled() else state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        own = dict(state)
        scaler = own.pop("scaler", None)
        self.optimizer.load_state_dict(own)
        if scaler is not None:
            self.scaler.load_state_dict(scaler)
