"""Samplers of the probability flow: Euler, Heun and the midpoint method with EDM's churn, DPM-Solver++ (2M)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

from torch import Tensor

from ctm.arguments import as_number
from ctm.conditions import Condition, as_condition
from ctm.parametrization import euler_update
from ctm.requests import Denoise, Steps
from ctm.sampling.common import Callback, Noise, Step, check_start, fresh_noise, level_values
from ctm.sampling.driving import sampler
from ctm.solvers import dpmpp_2m_step, heun_update, midpoint_update

__all__ = ["dpmpp_2m", "euler", "heun", "midpoint"]

_CHURN_NAMES = ("churn", "churn_min", "churn_noise")


@sampler
def euler(
    x: Tensor,
    grid: Tensor,
    *,
    condition: Condition = None,
    noise: Noise | None = None,
    callback: Callback | None = None,
) -> Steps:
    """Euler's method on the probability flow (= DDIM); order 1, one evaluation a step.

    x (B, *shape) at level grid[0]; grid (N + 1,) decreasing, a final 0 allowed; condition: of the B samples, or None;
    noise is not used; callback(Step) after each step. Returns x at grid[-1]. Raises ValueError for an unfitting grid."""
    levels, condition = check_start(x, grid, zero_end=True), as_condition(condition, x)
    for index, (t, s) in enumerate(itertools.pairwise(levels)):
        t_all, s_all = t.expand(len(x)), s.expand(len(x))
        denoised = yield Denoise(x, t_all, condition)
        x = euler_update(x, denoised, t_all, s_all)
        if callback is not None:
            callback(Step(index, t, s, x, denoised))
    return x


@sampler
def heun(
    x: Tensor,
    grid: Tensor,
    *,
    churn: float = 0.0,
    churn_min: float = 0.0,
    churn_max: float = math.inf,
    churn_noise: float = 1.0,
    condition: Condition = None,
    noise: Noise | None = None,
    callback: Callback | None = None,
) -> Steps:
    """Heun's method, with EDM's churn (arXiv 2206.00364, algorithms 1 and 2); order 2, two evaluations a step.

    A step with churn_min ≤ t ≤ churn_max first raises the noise level to t̂ = t + min(churn/N, √2 − 1)·t with noise of
    standard deviation churn_noise·√(t̂² − t²), N being the number of steps. The step to 0 is Euler's: 18 levels and a 0
    make 35 evaluations. Arguments as in `euler`; noise(x) -> standard normal like x, called for each step that churns.
    """
    churns = (churn, churn_min, churn_max, churn_noise)
    return _churned(heun_update, euler_update, x, grid, churns, condition, noise, callback)


@sampler
def midpoint(
    x: Tensor,
    grid: Tensor,
    *,
    churn: float = 0.0,
    churn_min: float = 0.0,
    churn_max: float = math.inf,
    churn_noise: float = 1.0,
    condition: Condition = None,
    noise: Noise | None = None,
    callback: Callback | None = None,
) -> Steps:
    """The midpoint method (DPM-Solver-2; sony/ctm and k-diffusion: sample_dpm_2), with EDM's churn; order 2, two
    evaluations a step, also in the step to 0, whose second is at an eighth of the level. Arguments as in `heun`."""
    churns = (churn, churn_min, churn_max, churn_noise)
    return _churned(midpoint_update, None, x, grid, churns, condition, noise, callback)


def _churned(
    step: Callable[..., Steps],
    to_zero: Callable[..., Tensor] | None,
    x: Tensor,
    grid: Tensor,
    churns: tuple[float, float, float, float],
    condition: Condition,
    noise: Noise | None,
    callback: Callback | None,
) -> Steps:
    """The loop of `heun` and `midpoint`: raise the level where the churn says so, then step down. to_zero: the step to level
    0, where it is another."""
    churn, churn_min, churn_noise = (
        as_number(value, name, 0) for value, name in zip((churns[0], churns[1], churns[3]), _CHURN_NAMES, strict=True)
    )
    churn_max = churns[2] if churns[2] == math.inf else as_number(churns[2], "churn_max", 0)
    levels, condition, draw = check_start(x, grid, zero_end=True), as_condition(condition, x), fresh_noise(noise)
    rate = min(churn / (len(levels) - 1), math.sqrt(2) - 1)
    known = itertools.pairwise(level_values(x, grid))
    for index, ((t, s), (at, below)) in enumerate(zip(itertools.pairwise(levels), known, strict=True)):
        raised = t
        if rate > 0 and churn_min <= at <= churn_max:
            raised = t + rate * t
            x = x + churn_noise * (raised**2 - t**2).sqrt() * draw(x)
        t_all, s_all = raised.expand(len(x)), s.expand(len(x))
        denoised = yield Denoise(x, t_all, condition)
        if below == 0 and to_zero is not None:
            x = to_zero(x, denoised, t_all, s_all)
        else:
            x = yield from step(x, denoised, t_all, s_all, condition)
        if callback is not None:
            callback(Step(index, t, s, x, denoised))
    return x


@sampler
def dpmpp_2m(
    x: Tensor,
    grid: Tensor,
    *,
    condition: Condition = None,
    noise: Noise | None = None,
    callback: Callback | None = None,
) -> Steps:
    """DPM-Solver++ (2M) (arXiv 2211.01095, algorithm 2); order 2, one evaluation a step. Arguments as in `euler`."""
    levels, condition = check_start(x, grid, zero_end=True), as_condition(condition, x)
    previous: tuple[Tensor, Tensor] | None = None
    for index, (t, s) in enumerate(itertools.pairwise(levels)):
        t_all = t.expand(len(x))
        denoised = yield Denoise(x, t_all, condition)
        x = dpmpp_2m_step(x, t_all, s.expand(len(x)), denoised, previous)
        previous = (t_all, denoised)
        if callback is not None:
            callback(Step(index, t, s, x, denoised))
    return x
