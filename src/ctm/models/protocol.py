"""What a model is: anything that denoises; to jump it also has `jump`. Methods ask for no more."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeAlias, cast, runtime_checkable

from torch import Tensor

from ctm.conditions import LABELS, Condition, is_flag_of
from ctm.noise import match_dims
from ctm.solvers import DenoisingFunction

__all__ = [
    "Denoiser",
    "Diffusion",
    "Jumper",
    "Model",
    "RangedDenoiser",
    "RangedJumper",
    "can_jump",
    "denoiser_of",
    "g_of",
    "jumper",
    "score_of",
    "taken_by",
]


@runtime_checkable
class Denoiser(Protocol):
    """What only denoises: D(x, t) = E[x_0 | x_t = x]."""

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


@runtime_checkable
class RangedDenoiser(Denoiser, Protocol):
    """A denoiser that says between which noise levels it is one."""

    sigma_min: float
    sigma_max: float


@runtime_checkable
class RangedJumper(Jumper, RangedDenoiser, Protocol):
    """A model that jumps, and says between which noise levels."""


@runtime_checkable
class Diffusion(RangedDenoiser, Protocol):
    """A ranged denoiser that says the standard deviation of its data, too: a student or a teacher."""

    sigma_data: float


Model: TypeAlias = (
    Denoiser | Callable[..., Tensor]
)  # what samplers that only denoise take: a model, or D(x, t, condition)


def can_jump(model: object) -> bool:
    """Whether the model has `jump`, its own or through the model inside it. (`isinstance` would not see the latter.)"""
    return callable(getattr(model, "jump", None))


def jumper(model: object) -> Jumper:
    """The model, which jumps. Raises ValueError for one that only denoises."""
    if not can_jump(model):
        raise ValueError(f"{type(model).__name__} has no jump(x, t, s, condition): only a CTM jumps to any level")
    return cast(Jumper, model)


def denoiser_of(model: object, condition: Condition) -> DenoisingFunction:
    """D(x, t) under a condition, of a model with `denoise`, or of a bare callable D(x, sigma, condition).
    Raises ValueError for anything else."""
    call = getattr(model, "denoise", model)
    if not callable(call):
        raise ValueError(f"a model has denoise(x, t, condition) or is callable, got {type(model).__name__}")
    return lambda x, t: call(x, t, condition) if condition is not None else call(x, t)


def taken_by(model: object, condition: Condition) -> Condition:
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


def g_of(model: Jumper, x: Tensor, t: Tensor, s: Tensor, condition: Condition) -> Tensor:
    """g of the jump of any model, (G − (s/t)·x)/(1 − s/t); 0 where s = t, where the jump does not depend on it.

    Shapes as in `Jumper.jump`. Where s is near t the division loses digits; `euler_update` multiplies them away."""
    ratio = match_dims(s / t, x)
    return (model.jump(x, t, s, condition) - ratio * x) / (1 - ratio).masked_fill(ratio == 1, 1.0)
