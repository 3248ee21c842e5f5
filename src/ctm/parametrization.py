"""From the network's output F to g, from g to the jump G and to the denoiser. Pure functions of tensors.

    g(x, t, s) = c_skip(t)·x + c_out(t)·F(c_in(t)·x, t, s)         "inner" scaling
    G(x, t, s) = C(t, s)·x + (1 − s/t)·g(x, t, s)                  "outer" scaling; C = s/t is CTM's (arXiv 2310.02279)

Coefficients are functions of levels t, s of any one shape.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from ctm.noise import match_dims

__all__ = [
    "Inner",
    "Outer",
    "denoiser_multiple",
    "euler_update",
    "input_scaling",
    "jump_from_g",
    "outer_scaling",
    "output_scalings",
    "rescaled_time",
]

Inner = Literal["edm", "cm", "no"]
Outer = Literal["euler", "variance", "euler_variance_mixed"]


def rescaled_time(t: Tensor) -> Tensor:
    """τ(t) = 250·ln(t + 1e-44), the time that ADM networks embed (sony/ctm and consistency models: rescaling_t). EDM's
    networks embed ¼·ln t."""
    return 250 * (t + 1e-44).log()


def input_scaling(t: Tensor, sigma_data: float) -> Tensor:
    """c_in(t) = 1/√(t² + σ_d²) (EDM, arXiv 2206.00364, table 1)."""
    return (t**2 + sigma_data**2).rsqrt()


def _edm(t: Tensor, sigma_data: float, sigma_min: float) -> tuple[Tensor, Tensor]:
    """(c_skip, c_out) of EDM: σ_d²/(t²+σ_d²), t·σ_d/√(t²+σ_d²). The target of F then has unit variance."""
    total = t**2 + sigma_data**2
    return sigma_data**2 / total, t * sigma_data * total.rsqrt()


def _cm(t: Tensor, sigma_data: float, sigma_min: float) -> tuple[Tensor, Tensor]:
    """(c_skip, c_out) of consistency models: σ_d²/((t−m)²+σ_d²), (t−m)·σ_d/√(t²+σ_d²). g is the identity at t = σ_min = m."""
    above = t - sigma_min
    return sigma_data**2 / (above**2 + sigma_data**2), above * sigma_data * (t**2 + sigma_data**2).rsqrt()


def _no(t: Tensor, sigma_data: float, sigma_min: float) -> tuple[Tensor, Tensor]:
    """(c_skip, c_out) = (0, 1): the network's output is g."""
    return torch.zeros_like(t), torch.ones_like(t)


_INNER: dict[str, Callable[[Tensor, float, float], tuple[Tensor, Tensor]]] = {"edm": _edm, "cm": _cm, "no": _no}


def _euler(t: Tensor, s: Tensor, sigma_data: float, sigma_min: float) -> Tensor:
    """C = s/t, CTM's (arXiv 2310.02279): the jump is exact where g = x + t/(t − s)·∫_t^s (x_u − D(x_u, u))/u du."""
    return s / t


def _variance(t: Tensor, s: Tensor, sigma_data: float, sigma_min: float) -> Tensor:
    """C = √(((s−m)²+σ_d²)/((t−m)²+σ_d²)): keeps the variance of x where g = 0."""
    return (((s - sigma_min) ** 2 + sigma_data**2) / ((t - sigma_min) ** 2 + sigma_data**2)).sqrt()


def _mixed(t: Tensor, s: Tensor, sigma_data: float, sigma_min: float) -> Tensor:
    """C = s/(t+1) + variance's C/(t+1)."""
    return (s + _variance(t, s, sigma_data, sigma_min)) / (t + 1)


_OUTER: dict[str, Callable[[Tensor, Tensor, float, float], Tensor]] = {
    "euler": _euler,
    "variance": _variance,
    "euler_variance_mixed": _mixed,
}


def _look_up(table: dict[str, Callable], name: str, what: str) -> Callable:
    if name not in table:
        raise ValueError(f"{what} must be one of {', '.join(table)}, got {name!r}")
    return table[name]


def output_scalings(inner: Inner, t: Tensor, sigma_data: float, sigma_min: float) -> tuple[Tensor, Tensor]:
    """(c_skip(t), c_out(t)) of g = c_skip·x + c_out·F. Raises ValueError for an unknown inner."""
    return _look_up(_INNER, inner, "inner")(t, sigma_data, sigma_min)


def outer_scaling(outer: Outer, t: Tensor, s: Tensor, sigma_data: float, sigma_min: float) -> Tensor:
    """C(t, s), the multiple of x in the jump. Raises ValueError for an unknown outer."""
    return _look_up(_OUTER, outer, "outer")(t, s, sigma_data, sigma_min)


def euler_update(x: Tensor, g: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """(s/t)·x + (1 − s/t)·g, which is x where s = t. This is CTM's jump from g (arXiv 2310.02279). With g = D(x, t) it is Euler's
    step of the flow (= DDIM), exact when D is constant. x (B, …), g like x, t and s (B,)."""
    return _update(x, g, s / t, s / t)


def jump_from_g(
    outer: Outer, x: Tensor, g: Tensor, t: Tensor, s: Tensor, sigma_data: float, sigma_min: float
) -> Tensor:
    """G = C(t, s)·x + (1 − s/t)·g, which is x where s = t. x (B, …), g like x, t and s (B,)."""
    return _update(x, g, outer_scaling(outer, t, s, sigma_data, sigma_min), s / t)


def _update(x: Tensor, g: Tensor, multiple: Tensor, ratio: Tensor) -> Tensor:
    """multiple·x + (1 − ratio)·g, for coefficients (B,)."""
    return match_dims(multiple, x) * x + (1 - match_dims(ratio, x)) * g


def denoiser_multiple(outer: Outer, t: Tensor, sigma_data: float, sigma_min: float) -> Tensor:
    """The multiple m(t) of x in D = g(x, t, t) + m·x. With it, ∂G/∂s at s = t is (x − D)/t, the probability flow.

    ∂G/∂s = ∂C/∂s·x − g/t at s = t, where 1 − s/t is 0. So m = 1 − t·∂C/∂s(t, t). It is 0 for euler, and 1 −
    t(t−σ_min)/((t−σ_min)²+σ_d²) for variance, written below without its cancellation. For the mixed form it is variance's m
    over t + 1."""
    if outer == "euler":
        return torch.zeros_like(t)
    variance = (sigma_min**2 + sigma_data**2 - sigma_min * t) / ((t - sigma_min) ** 2 + sigma_data**2)
    if outer == "variance":
        return variance
    _look_up(_OUTER, outer, "outer")
    return variance / (t + 1)
