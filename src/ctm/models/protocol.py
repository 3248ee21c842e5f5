"""What a model is: anything that denoises; to jump it also has `jump`. Methods ask for no more."""

from __future__ import annotations

from typing import Any, Protocol, TypeGuard, runtime_checkable

from torch import Tensor

from ctm.noise import match_dims
from ctm.solvers import Denoiser as DenoisingFunction

__all__ = ["Denoiser", "Jumper", "RangedDenoiser", "RangedJumper", "can_jump", "denoiser_of", "g_of", "score_of"]


@runtime_checkable
class Denoiser(Protocol):
    """A diffusion model: D(x, t) = E[x_0 | x_t = x]."""

    shape: tuple[int, ...]

    def denoise(self, x: Tensor, t: Tensor, labels: Tensor | None = None, /) -> Tensor:
        """x (B, *shape) at levels t (B,), labels int64 (B,) with −1 for none, or None -> like x."""
        ...


@runtime_checkable
class Jumper(Denoiser, Protocol):
    """A model that jumps along the probability flow."""

    def jump(self, x: Tensor, t: Tensor, s: Tensor, labels: Tensor | None = None, /) -> Tensor:
        """x (B, *shape) at levels t (B,) -> the state at levels s (B,) ≤ t."""
        ...


@runtime_checkable
class RangedDenoiser(Denoiser, Protocol):
    """A diffusion model that says between which noise levels it is one."""

    sigma_min: float
    sigma_max: float


@runtime_checkable
class RangedJumper(Jumper, RangedDenoiser, Protocol):
    """A model that jumps, and says between which noise levels."""


def can_jump(model: object) -> TypeGuard[RangedJumper]:
    """Whether the model has `jump`, its own or that of the model inside it. (`isinstance` would not see the latter.)"""
    return callable(getattr(model, "jump", None))


def denoiser_of(model: Any, labels: Tensor | None) -> DenoisingFunction:
    """D(x, t) of a model with `denoise`, or of a bare callable D(x, sigma, labels). Raises ValueError for anything else."""
    call = getattr(model, "denoise", model)
    if not callable(call):
        raise ValueError(f"a model has denoise(x, t, labels) or is callable, got {type(model).__name__}")
    return lambda x, t: call(x, t, labels) if labels is not None else call(x, t)


def score_of(denoised: Tensor, x: Tensor, t: Tensor) -> Tensor:
    """∇ log p_t(x) = (D(x, t) − x)/t², like x (Tweedie's formula); t (B,)."""
    return (denoised - x) / match_dims(t, x) ** 2


def g_of(model: Any, x: Tensor, t: Tensor, s: Tensor, labels: Tensor | None) -> Tensor:
    """g of the jump of any model, (G − (s/t)·x)/(1 − s/t); 0 where s = t, where the jump does not depend on it.

    Shapes as in `Jumper.jump`. Where s is near t the division loses digits; `euler_update` multiplies them away."""
    ratio = match_dims(s / t, x)
    return (model.jump(x, t, s, labels) - ratio * x) / (1 - ratio).masked_fill(ratio == 1, 1.0)
