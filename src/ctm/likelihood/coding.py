"""Data to noise and back along the flow, and the density of a fixed grid of solver steps."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ctm.arguments import as_number, as_state
from ctm.conditions import Condition, as_condition, takes_labels
from ctm.likelihood.flow import integrate_flow, log_prior
from ctm.models.protocol import Model, denoiser_of
from ctm.sampling.common import check_start
from ctm.solvers import heun_step

__all__ = ["decode", "encode", "grid_log_density"]


@takes_labels
def encode(
    model: Model,
    x: Tensor,
    condition: Condition = None,
    *,
    level: float | None = None,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    progress: Callable[[float], object] | None = None,
) -> Tensor:
    """x (B, *shape) at level sigma_min -> the noise z, like x, from which the flow makes it: x_T/sigma_max, nearly standard
    normal for data. By dopri5 to the tolerances. level: the noise level of x where it is another one, between sigma_min and
    sigma_max, as for a picture that was rounded or compressed. progress: as of `ctm.likelihood.flow.integrate_flow`. Raises
    ValueError for a level or tolerance out of range."""
    sigma_min, sigma_max = getattr(model, "sigma_min", 0.002), getattr(model, "sigma_max", 80.0)
    if level is not None:
        sigma_min = as_number(level, "level", sigma_min, 0.999 * sigma_max, why="it is between sigma_min and sigma_max")
    options: dict[str, Any] = {"rtol": rtol, "atol": atol, "progress": progress}
    done = integrate_flow(
        denoiser_of(model, as_condition(condition, as_state(x))), x, sigma_min, sigma_max, None, **options
    )
    return (done.x / sigma_max).reshape(x.shape).to(x.dtype)


@takes_labels
def decode(
    model: Model,
    z: Tensor,
    condition: Condition = None,
    *,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    progress: Callable[[float], object] | None = None,
) -> Tensor:
    """The inverse of `encode`: the flow from sigma_max·z down to sigma_min, like z. A model that jumps does it in a step:
    model.jump(sigma_max·z, …)."""
    sigma_min, sigma_max = getattr(model, "sigma_min", 0.002), getattr(model, "sigma_max", 80.0)
    start = sigma_max * as_state(z, "z")
    options: dict[str, Any] = {"rtol": rtol, "atol": atol, "progress": progress}
    done = integrate_flow(
        denoiser_of(model, as_condition(condition, z)), start, sigma_min, sigma_max, None, down=True, **options
    )
    return done.x.reshape(z.shape).to(z.dtype)


@takes_labels
def grid_log_density(model: Model, x: Tensor, grid: Tensor, condition: Condition = None) -> Tensor:
    """ln of the density that Heun's steps up a fixed grid define, by the change of variables: (B,) nats, x's dtype.

        z = F(x), one step for each interval of the grid from its end to its start;   ln N(z; 0, grid[0]²·I) + ln |det ∂F/∂x|

    A normalised density so far as F is one-to-one, whatever the number of steps; it tends to `log_density` with exact trace, in
    second order. grid (N + 1,) decreasing from sigma_max to sigma_min. Each step takes two evaluations and, exactly, one
    backward pass for each of x's coordinates. Raises ValueError for an unfitting grid.
    """
    levels, denoise = check_start(x, grid, zero_end=False), denoiser_of(model, as_condition(condition, x))
    total = torch.zeros(len(x), dtype=x.dtype, device=x.device)
    for low, high in itertools.pairwise(levels.flip(0)):
        with torch.enable_grad():
            at = x.detach().requires_grad_()
            up = heun_step(denoise, at, low.expand(len(x)), high.expand(len(x)))
            columns = up.flatten(1)
            rows = [
                torch.autograd.grad(columns[:, i].sum(), at, retain_graph=True)[0].flatten(1)
                for i in range(columns.shape[1])
            ]
        total = total + torch.linalg.slogdet(torch.stack(rows, dim=1)).logabsdet
        x = up.detach()
    return log_prior(x, float(levels[0])) + total
