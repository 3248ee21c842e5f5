"""What a model is: anything that denoises; to jump it also has `jump`. Methods ask for no more."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from ctm.conditions import LABELS, Condition, is_flag_of
from ctm.noise import match_dims
from ctm.solvers import Denoiser as DenoisingFunction

__all__ = ["Denoiser", "Jumper", "denoiser_of", "g_of", "score_of", "taken_by"]


@runtime_checkable
class Denoiser(Protocol):
    """A diffusion model: D(x, t) = E[x_0 | x_t = x]."""

    shape: tuple[int, ...]

    def denoise(self, x: Tensor, t: Tensor, condition: Condition = None, /) -> Tensor:
        """x (B, *shape) at levels t (B,), condition: of the B samples, or None -> like x."""
        ...


@runtime_checkable
class Jumper(Denoiser, Protocol):
    """A model that jumps along the probability flow."""

    def jump(self, x: Tensor, t: Tensor, s: Tensor, condition: Condition = None, /) -> Tensor:
        """x (B, *shape) at levels t (B,) -> the state at levels s (B,) ≤ t."""
        ...


def denoiser_of(model: Any, condition: Condition) -> DenoisingFunction:
    """D(x, t) under a condition, of a model with `denoise`, or of a bare callable D(x, sigma, condition).
    Raises ValueError for anything else."""
    call = getattr(model, "denoise", model)
    if not callable(call):
        raise ValueError(f"a model has denoise(x, t, condition) or is callable, got {type(model).__name__}")
    return lambda x, t: call(x, t, condition) if condition is not None else call(x, t)


def taken_by(model: Any, condition: Condition) -> Condition:
    """The part of a condition that a model takes: a teacher may know less than its student. All of it for a model that does not
    say."""
    conditioner = getattr(model, "conditioner", None)
    if condition is None or conditioner is None:
        return None if getattr(model, "num_classes", None) == 0 else condition
    if isinstance(condition, Tensor):
        return condition if conditioner.num_classes else None
    known = {*conditioner.fields, *((LABELS,) if conditioner.num_classes else ())}
    kept = {name: value for name, value in condition.items() if name in known or is_flag_of(name, known)}
    return kept[LABELS] if set(kept) == {LABELS} and not conditioner.fields else kept or None


def score_of(denoised: Tensor, x: Tensor, t: Tensor) -> Tensor:
    """∇ log p_t(x) = (D(x, t) − x)/t², like x (Tweedie's formula); t (B,)."""
    return (denoised - x) / match_dims(t, x) ** 2


def g_of(model: Any, x: Tensor, t: Tensor, s: Tensor, condition: Condition) -> Tensor:
    """g of the jump of any model, (G − (s/t)·x)/(1 − s/t); 0 where s = t, where the jump does not depend on it.

    Shapes as in `Jumper.jump`. Where s is near t the division loses digits; `euler_update` multiplies them away."""
    ratio = match_dims(s / t, x)
    return (model.jump(x, t, s, condition) - ratio * x) / (1 - ratio).masked_fill(ratio == 1, 1.0)
