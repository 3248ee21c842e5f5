"""Denoising score matching (a loss of CTM, arXiv 2310.02279): keeps g(x, t, t) the denoiser, and trains diffusion teachers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ctm.conditions import Condition
from ctm.models.protocol import Diffusion
from ctm.noise import half_lognormal, match_dims, normal_like
from ctm.objectives.base import Draw, Networks, Objective
from ctm.weighting import karras

__all__ = ["DenoisingDraw", "DenoisingScoreMatching"]


@dataclass(frozen=True)
class DenoisingDraw(Draw):
    """The random numbers of one step: sigma (B,), noise (B, …) standard normal."""

    sigma: Tensor
    noise: Tensor

    def rows(self, part: slice) -> DenoisingDraw:
        return DenoisingDraw(self.sigma[part], self.noise[part])


@dataclass(frozen=True)
class DenoisingScoreMatching(Objective):
    """w(σ)·|x₀ − D(x₀ + σε, σ)|², averaged over coordinates: a loss per sample.

    levels: how σ is drawn, (n, sigma_min=, sigma_max=, generator=) -> (n,): `ctm.noise.half_lognormal` (CTM students) or
    `ctm.noise.lognormal` (EDM teachers). A student that takes a guidance scale is trained at w = 1, the only one of which
    x₀ is a sample. weight: w(t, s, σ_d) at t = s = σ, EDM's (σ² + σ_d²)/(σ·σ_d)² by default.
    """

    levels: Callable[..., Tensor] = half_lognormal
    weight: Callable[[Tensor, Tensor, float], Tensor] = karras

    def draw(self, model: Diffusion, like: Tensor, generator: torch.Generator) -> DenoisingDraw:
        """The random numbers for a batch like `like` (B, …)."""
        sigma = self.levels(len(like), sigma_min=model.sigma_min, sigma_max=model.sigma_max, generator=generator)
        noise = normal_like(like, generator)
        return DenoisingDraw(sigma.to(like), noise)

    def __call__(self, networks: Networks, x0: Tensor, condition: Condition, draw: DenoisingDraw) -> Tensor:
        """x0 (B, …) in data space -> (B,)."""
        model = networks.student
        x = x0 + match_dims(draw.sigma, x0) * draw.noise
        error = x0 - model.denoise(x, draw.sigma, condition)
        return self.weight(draw.sigma, draw.sigma, model.sigma_data) * error.square().flatten(1).mean(1)
