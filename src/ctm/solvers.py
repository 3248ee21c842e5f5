"""Steps of the probability-flow ODE dx/dt = (x − D(x, t))/t (arXiv 2206.00364, eq. 1, with σ(t) = t).

A step takes x (B, …) at levels t (B,) to levels s (B,), s ≤ t. Levels may differ between samples. s = 0 is allowed: there a
step is one Euler step, x ← D. A step with a second evaluation yields a request for it (`ctm.requests`), so samplers can pass
the request on. `heun_step` and `midpoint_step` are the same steps with D(x, t) -> like x given as a function."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import TypeAlias

import torch
from torch import Tensor

from ctm.conditions import Condition
from ctm.noise import match_dims
from ctm.parametrization import euler_update
from ctm.requests import Denoise, Steps, run

__all__ = [
    "DenoisingFunction",
    "ancestral_levels",
    "dpmpp_2m_states",
    "dpmpp_2m_step",
    "dpmpp_2m_walk",
    "euler_step",
    "heun_step",
    "heun_update",
    "last_of",
    "midpoint_step",
    "midpoint_update",
    "walk",
    "walk_states",
]

DenoisingFunction: TypeAlias = Callable[[Tensor, Tensor], Tensor]


def heun_update(x: Tensor, denoised: Tensor, t: Tensor, s: Tensor, condition: Condition = None) -> Steps:
    """x after Heun's step, with the denoised image at t known (EDM, arXiv 2206.00364, algorithm 1). It requests one more
    evaluation.

    Samples with s = 0 take one Euler step. They are part of the request, but the answer for them is not used."""
    guess = euler_update(x, denoised, t, s)
    ends = s == 0
    safe = torch.where(ends, t, s)
    slope = (x - denoised) / match_dims(t, x)
    slope_end = (guess - (yield Denoise(guess, safe, condition))) / match_dims(safe, x)
    corrected = x + match_dims(s - t, x) * (slope + slope_end) / 2
    return torch.where(match_dims(ends, x).bool(), guess, corrected)


def midpoint_update(
    x: Tensor, denoised: Tensor, t: Tensor, s: Tensor, condition: Condition = None, power: float = 3.0
) -> Steps:
    """x after the midpoint method's step (DPM-Solver-2), with the denoised image at t known: an Euler step to the level m
    between t and s, then the whole step with the slope found there.

    m = ((t^(1/power) + s^(1/power))/2)^power, with power 3, the ρ of EDM's schedule that spreads the error of Heun's steps
    evenly (arXiv 2206.00364, section 3; k-diffusion and sony/ctm: sample_dpm_2). It requests one more evaluation, in a step
    to s = 0 at t/2^power."""
    middle = ((t ** (1 / power) + s ** (1 / power)) / 2) ** power
    guess = euler_update(x, denoised, t, middle)
    slope = (guess - (yield Denoise(guess, middle, condition))) / match_dims(middle, x)
    return x + match_dims(s - t, x) * slope


def euler_step(denoise: DenoisingFunction, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """x after Euler's step: order 1, one evaluation."""
    return euler_update(x, denoise(x, t), t, s)


def heun_step(denoise: DenoisingFunction, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """x after Heun's step: order 2, two evaluations; one Euler step where s = 0."""
    return run(heun_update(x, denoise(x, t), t, s), lambda asked: denoise(asked.x, asked.t))


def midpoint_step(denoise: DenoisingFunction, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """x after the midpoint method's step: order 2, two evaluations, also in a step to s = 0."""
    return run(midpoint_update(x, denoise(x, t), t, s), lambda asked: denoise(asked.x, asked.t))


def ancestral_levels(t: Tensor, s: Tensor, eta: float = 1.0) -> tuple[Tensor, Tensor]:
    """(down, up): an ancestral step from t to s goes down the flow to the level `down`, then adds noise of standard
    deviation `up`. down² + up² = s² (k-diffusion: get_ancestral_step; DDPM's posterior for eta = 1, DDIM for 0).

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
    return euler_update(x, extrapolated(denoised, t, s, previous), t, s)


def extrapolated(denoised: Tensor, t: Tensor, s: Tensor, previous: tuple[Tensor, Tensor] | None) -> Tensor:
    """D' of `dpmpp_2m_step`: D extrapolated, linearly in −ln t, to the middle of the step. In the first step and in the step
    to s = 0 it is D itself. Arguments as there."""
    if previous is None:
        return denoised
    t_previous, denoised_previous = previous
    half_inverse = match_dims((t / s).log() / (t_previous / t).log() / 2, denoised)
    further = (1 + half_inverse) * denoised - half_inverse * denoised_previous
    return torch.where(match_dims(s == 0, denoised).bool(), denoised, further)


def walk_states(
    denoise: DenoisingFunction,
    x: Tensor,
    path: Tensor,
    step: Callable[[DenoisingFunction, Tensor, Tensor, Tensor], Tensor] = heun_step,
) -> Iterator[Tensor]:
    """x after each of k steps along the levels path (k + 1, B)."""
    for t, s in itertools.pairwise(path):
        x = step(denoise, x, t, s)
        yield x


def walk(
    denoise: DenoisingFunction,
    x: Tensor,
    path: Tensor,
    step: Callable[[DenoisingFunction, Tensor, Tensor, Tensor], Tensor] = heun_step,
) -> Tensor:
    """x after k steps along the levels path (k + 1, B)."""
    return last_of(walk_states(denoise, x, path, step), x)


def dpmpp_2m_states(denoise: DenoisingFunction, x: Tensor, path: Tensor) -> Iterator[Tensor]:
    """x after each of k steps of DPM-Solver++ (2M) along the levels path (k + 1, B), one evaluation each."""
    previous = None
    for t, s in itertools.pairwise(path):
        denoised = denoise(x, t)
        x, previous = dpmpp_2m_step(x, t, s, denoised, previous), (t, denoised)
        yield x


def dpmpp_2m_walk(denoise: DenoisingFunction, x: Tensor, path: Tensor) -> Tensor:
    """x after k steps of DPM-Solver++ (2M) along the levels path (k + 1, B), one evaluation each."""
    return last_of(dpmpp_2m_states(denoise, x, path), x)


def last_of(states: Iterable[Tensor], x: Tensor) -> Tensor:
    """The last state of a walk; x where it has no step."""
    for state in states:
        x = state
    return x
