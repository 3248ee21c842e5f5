"""Steps of the probability-flow ODE  dx/dt = (x − D(x, t))/t  (EDM eq. 1 in the variance-exploding convention).

A step takes x (B, …) at levels t (B,) to levels s (B,), s ≤ t; `denoise` is D(x, t) -> like x. Levels may differ between
samples. s = 0 is allowed: there a step is one Euler step, x ← D.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor

from ctm.noise import match_dims

__all__ = [
    "Denoise",
    "ancestral_levels",
    "dpmpp_2m_step",
    "dpmpp_2m_walk",
    "euler_step",
    "heun_step",
    "midpoint_step",
    "walk",
]

Denoise = Callable[[Tensor, Tensor], Tensor]


def toward(x: Tensor, denoised: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """Euler's step with the denoised image known: (s/t)·x + (1 − s/t)·D, exact when D is constant (= DDIM)."""
    ratio = match_dims(s / t, x)
    return ratio * x + (1 - ratio) * denoised


def euler_step(denoise: Denoise, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """Euler's method, order 1, one evaluation."""
    return toward(x, denoise(x, t), t, s)


def heun_step(denoise: Denoise, x: Tensor, t: Tensor, s: Tensor, denoised: Tensor | None = None) -> Tensor:
    """Heun's method, order 2, two evaluations (EDM algorithm 1); one Euler step where s = 0, with one evaluation if s is
    0 for all. `denoised` is D(x, t) where the caller has it."""
    first = denoise(x, t) if denoised is None else denoised
    guess = toward(x, first, t, s)
    ends = s == 0
    if bool(ends.all()):
        return guess
    safe = torch.where(ends, t, s)
    slope = (x - first) / match_dims(t, x)
    slope_end = (guess - denoise(guess, safe)) / match_dims(safe, x)
    corrected = x + match_dims(s - t, x) * (slope + slope_end) / 2
    return torch.where(match_dims(ends, x).bool(), guess, corrected)


def midpoint_step(
    denoise: Denoise, x: Tensor, t: Tensor, s: Tensor, denoised: Tensor | None = None, power: float = 3.0
) -> Tensor:
    """The midpoint method (DPM-Solver-2), order 2, two evaluations: Euler to the level m between t and s, then the whole
    step with the slope found there. m = ((t^(1/power) + s^(1/power))/2)^power, with EDM's power 3 (arXiv 2206.00364,
    appendix; k-diffusion and sony/ctm: sample_dpm_2). A step to s = 0 too has two evaluations, the second at t/2^power.
    `denoised` is D(x, t) where the caller has it."""
    first = denoise(x, t) if denoised is None else denoised
    middle = ((t ** (1 / power) + s ** (1 / power)) / 2) ** power
    guess = toward(x, first, t, middle)
    slope = (guess - denoise(guess, middle)) / match_dims(middle, x)
    return x + match_dims(s - t, x) * slope


def ancestral_levels(t: Tensor, s: Tensor, eta: float = 1.0) -> tuple[Tensor, Tensor]:
    """(down, up): an ancestral step from t to s goes down the flow to the level `down`, then adds noise of standard
    deviation `up`, with down² + up² = s² (k-diffusion: get_ancestral_step; DDPM's posterior for eta = 1, DDIM for 0).

        up = min(s, eta·√(s²·(t² − s²)/t²)),   down = √(s² − up²)

    s = 0 gives (0, 0). t, s of any one shape, s ≤ t."""
    up = torch.minimum(s, eta * s * (t**2 - s**2).clamp(min=0).sqrt() / t)
    return (s**2 - up**2).clamp(min=0).sqrt(), up


def dpmpp_2m_step(
    x: Tensor, t: Tensor, s: Tensor, denoised: Tensor, previous: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    """DPM-Solver++ (2M), order 2 with one evaluation a step (arXiv 2211.01095, algorithm 2), in this convention:

        λ = −ln t,  h = λ_s − λ_t,  r = h_previous/h
        D' = (1 + 1/(2r))·D − 1/(2r)·D_previous;   x ← (s/t)·x + (1 − s/t)·D'

    denoised: D(x, t). previous: (t, D) of the step before, None in the first step (then it is Euler's). The step to s = 0
    is Euler's.
    """
    return toward(x, extrapolated(denoised, t, s, previous), t, s)


def extrapolated(denoised: Tensor, t: Tensor, s: Tensor, previous: tuple[Tensor, Tensor] | None) -> Tensor:
    """D' of `dpmpp_2m_step`: D carried on, linearly in −ln t, to the middle of the step; D itself in the first step and in the
    step to s = 0. Arguments as there."""
    if previous is None or bool((s == 0).all()):
        return denoised
    t_previous, denoised_previous = previous
    half_inverse = match_dims((t / s).log() / (t_previous / t).log() / 2, denoised)
    return (1 + half_inverse) * denoised - half_inverse * denoised_previous


def walk(
    denoise: Denoise, x: Tensor, path: Tensor, step: Callable[[Denoise, Tensor, Tensor, Tensor], Tensor] = heun_step
) -> Tensor:
    """Take x along the levels path (k + 1, B) in k steps."""
    for t, s in itertools.pairwise(path):
        x = step(denoise, x, t, s)
    return x


def dpmpp_2m_walk(denoise: Denoise, x: Tensor, path: Tensor) -> Tensor:
    """Take x along the levels path (k + 1, B) in k steps of DPM-Solver++ (2M), one evaluation each."""
    previous = None
    for t, s in itertools.pairwise(path):
        denoised = denoise(x, t)
        x, previous = dpmpp_2m_step(x, t, s, denoised, previous), (t, denoised)
    return x
