"""A CTM as a flow map in flow matching's coordinates, which diffusers' FlowMapEulerDiscreteScheduler takes steps of.

    z = x/(1 + σ),   τ = σ/(1 + σ);   mean velocity u(z, τ, r) = (z_τ − z_r)/(τ − r),   at r = τ: u = (x − D)/σ − D

z_r is the jump G(x, σ, s), s = r/(1 − r), divided by 1 + s. At r = 0 the image itself is z_0, and it is G(x, σ, σ_min). So a step
z_τ − (τ − r)·u is a jump. (Flow maps: arXiv 2406.07507; mean velocity: arXiv 2505.13447.)
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ctm.arguments import inside
from ctm.conditions import Condition
from ctm.models import TrajectoryModel
from ctm.noise import match_dims
from ctm.parametrization import denoiser_multiple, jump_from_g

__all__ = ["TIME_SCALE", "MeanVelocity", "flow_time", "noise_level"]

TIME_SCALE = 1000.0  # diffusers' timestep is this times τ


def flow_time(sigma: Tensor) -> Tensor:
    """τ = σ/(1 + σ), in [0, 1)."""
    return sigma / (1 + sigma)


def noise_level(tau: Tensor) -> Tensor:
    """σ = τ/(1 − τ)."""
    return tau / (1 - tau)


class MeanVelocity(nn.Module):
    """u(z, τ, r) of a CTM, one call of its network.

    forward(sample, timestep, r_timestep, condition): sample z (B, *shape), timestep 1000·τ and r_timestep 1000·r ≤ timestep (B,),
    condition as of the model -> u like sample. Nothing is checked, so that the call can be traced into a graph."""

    def __init__(self, model: TrajectoryModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, sample: Tensor, timestep: Tensor, r_timestep: Tensor, condition: Condition = None) -> Tensor:
        model = self.model
        tau, r = timestep / TIME_SCALE, r_timestep / TIME_SCALE
        sigma, low = noise_level(tau), noise_level(r)
        s = torch.minimum(low.clamp(min=model.sigma_min), sigma).to(sample.dtype)
        t = sigma.to(sample.dtype)
        x = sample * match_dims(1 + t, sample)
        with inside():
            g = model.g(x, t, s, condition)
        jumped = jump_from_g(model.outer, x, g, t, s, model.sigma_data, model.sigma_min)
        arrived = jumped / match_dims(torch.where(low < model.sigma_min, 1.0, 1 + s), jumped)
        gap = (tau - r).to(sample.dtype)
        still = gap < 1e-7
        mean = (sample - arrived) / match_dims(torch.where(still, 1.0, gap), sample)
        d = g + match_dims(denoiser_multiple(model.outer, t, model.sigma_data, model.sigma_min), x) * x
        instant = (x - d) / match_dims(t, x) - d
        return torch.where(match_dims(still, sample).bool(), instant, mean)
