"""Samplers of the reverse diffusion: each step goes below the next level and adds fresh noise up to it."""

from __future__ import annotations

import itertools

from torch import Tensor

from ctm.arguments import as_number
from ctm.conditions import Condition, as_condition
from ctm.parametrization import euler_update
from ctm.requests import Denoise, Steps
from ctm.sampling.common import Callback, Noise, Step, check_start, fresh_noise, level_values
from ctm.sampling.driving import sampler
from ctm.solvers import ancestral_levels, extrapolated

__all__ = ["ancestral", "dpmpp_2m_sde"]


@sampler
def ancestral(
    x: Tensor,
    grid: Tensor,
    *,
    eta: float = 1.0,
    condition: Condition = None,
    noise: Noise | None = None,
    callback: Callback | None = None,
) -> Steps:
    """Ancestral sampling: an Euler step below the next level, then noise up to it; one evaluation a step.

    eta: how much of the noise is fresh: 1 samples the reverse diffusion (DDPM's posterior), 0 is `euler`. noise(x) ->
    standard normal like x, called for each step that adds noise, so not for the step to 0. Other arguments as in `euler`.
    Raises ValueError for eta outside [0, 1] or an unfitting grid."""
    eta = as_number(eta, "eta", 0, 1, why="0 adds no noise, 1 samples the reverse diffusion")
    return _reverse_diffusion(x, grid, eta, False, condition, noise, callback)


@sampler
def dpmpp_2m_sde(
    x: Tensor,
    grid: Tensor,
    *,
    condition: Condition = None,
    noise: Noise | None = None,
    callback: Callback | None = None,
) -> Steps:
    """SDE-DPM-Solver++ (2M) (arXiv 2211.01095, section 5): the reverse diffusion with DPM-Solver++'s denoised image D', carried
    on from the step before to the middle of this one; one evaluation a step. Other arguments as in `ancestral`.

        x ← (s/t)²·x + (1 − (s/t)²)·D' + s·√(1 − (s/t)²)·ε
    """
    return _reverse_diffusion(x, grid, 1.0, True, condition, noise, callback)


def _reverse_diffusion(
    x: Tensor,
    grid: Tensor,
    eta: float,
    second_order: bool,
    condition: Condition,
    noise: Noise | None,
    callback: Callback | None,
) -> Steps:
    """The loop of both: down to ancestral_levels' `down`, then noise of its `up`."""
    levels, draw = check_start(x, grid, zero_end=True), fresh_noise(noise)
    condition = as_condition(condition, x)
    previous: tuple[Tensor, Tensor] | None = None
    ends = level_values(x, grid)[1:]
    for index, ((t, s), end) in enumerate(zip(itertools.pairwise(levels), ends, strict=True)):
        t_all = t.expand(len(x))
        denoised = yield Denoise(x, t_all, condition)
        down, up = ancestral_levels(t, s, eta)
        aim = extrapolated(denoised, t_all, s.expand(len(x)), previous) if second_order else denoised
        previous = (t_all, denoised)
        x = euler_update(x, aim, t_all, down.expand(len(x)))
        if eta > 0 and end > 0:
            x = x + up * draw(x)
        if callback is not None:
            callback(Step(index, t, s, x, denoised))
    return x
