"""Denoising score matching (a loss of CTM, arXiv 2310.02279): keeps g(x, t, t) the denoiser, and trains diffusion teachers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ctm.conditions import Condition
from ctm.models.protocol import Denoiser, Diffusion
from ctm.noise import half_lognormal, match_dims, normal_like
from ctm.objectives.base import Draw, Networks, Objective
from ctm.objectives.guiding import at_scales, check_guided, check_range, draw_scales
from ctm.objectives.ways import known_denoised
from ctm.weighting import karras

__all__ = ["DenoisingDraw", "DenoisingScoreMatching"]


@dataclass(frozen=True)
class DenoisingDraw(Draw):
    """The random numbers of one step: sigma (B,), noise (B, …) standard normal, and guidance scales (B,) where there
    are any."""

    sigma: Tensor
    noise: Tensor
    guidance: Tensor | None = None

    def rows(self, part: slice) -> DenoisingDraw:
        scales = None if self.guidance is None else self.guidance[part]
        return DenoisingDraw(self.sigma[part], self.noise[part], scales)


@dataclass(frozen=True)
class DenoisingScoreMatching(Objective):
    """w(σ)·|x₀ − D(x₀ + σε, σ)|², averaged over coordinates: a loss per sample.

    levels: how σ is drawn, (n, sigma_min=, sigma_max=, generator=) -> (n,): `ctm.noise.half_lognormal` (CTM students) or
    `ctm.noise.lognormal` (EDM teachers). A student that takes a guidance scale is trained at w = 1, the only one of which
    x₀ is a sample. weight: w(t, s, σ_d) at t = s = σ, EDM's (σ² + σ_d²)/(σ·σ_d)² by default.
    guidance: [low, high] distils the teacher's guided denoiser in place of x₀ (arXiv 2210.03142, its first stage): a scale w is
    drawn for each sample and given to the student, and the target is D_∅ + w·(D_y − D_∅). So g(x, t, t) is the guided denoiser.
    """

    levels: Callable[..., Tensor] = half_lognormal
    weight: Callable[[Tensor, Tensor, float], Tensor] = karras
    guidance: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.guidance is not None:
            check_range(self.guidance)

    @property
    def needs_teacher(self) -> bool:  # type: ignore[override]
        return self.guidance is not None

    def draw(self, model: Diffusion, like: Tensor, generator: torch.Generator) -> DenoisingDraw:
        """The random numbers for a batch like `like` (B, …)."""
        sigma = self.levels(len(like), sigma_min=model.sigma_min, sigma_max=model.sigma_max, generator=generator)
        noise = normal_like(like, generator)
        return DenoisingDraw(sigma.to(like), noise, draw_scales(self.guidance, like, generator))

    def __call__(self, networks: Networks, x0: Tensor, condition: Condition, draw: DenoisingDraw) -> Tensor:
        """x0 (B, …) in data space -> (B,)."""
        model = networks.student
        x = x0 + match_dims(draw.sigma, x0) * draw.noise
        wanted = x0
        if draw.guidance is not None:
            wanted = known_denoised(networks, "teacher", x, draw.sigma, condition, draw.guidance)
        error = wanted - model.denoise(x, draw.sigma, at_scales(condition, draw.guidance))
        return self.weight(draw.sigma, draw.sigma, model.sigma_data) * error.square().flatten(1).mean(1)

    def teacher_evaluations(self, draw: DenoisingDraw) -> int:
        return 0 if draw.guidance is None else 2

    def check(self, student: Diffusion, teacher: Denoiser | None) -> None:
        """Raises ValueError where guidance is asked for and the student does not take it, or the teacher has no classes."""
        if self.guidance is not None:
            check_guided(student, teacher)
