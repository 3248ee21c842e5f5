"""Eulerian matching: along the flow, a jump's end stays where it is. The continuous limit of local consistency matching."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from ctm.conditions import Condition
from ctm.models.protocol import Diffusion, jumper
from ctm.noise import match_dims
from ctm.objectives.base import Networks
from ctm.objectives.derivatives import directional_derivative
from ctm.objectives.guiding import at_scales
from ctm.objectives.ways import JumpDraw, Way, check_choice, known_denoised

__all__ = ["Eulerian"]

Velocity = Literal["teacher", "student", "target", "data"]


@dataclass(frozen=True)
class Eulerian(Way):
    """w·|G − stopgrad(G − h)|², the mean over coordinates, with G = G(x_t, t, s), x_t = x₀ + t·ε and the tangent

        h = t·d/dt G(x_t, t, s) = t·(∂G/∂x·v + ∂G/∂t),   v = (x_t − D)/t,   s fixed

    So its value is w·|h|², zero just where d/dt G = 0, and its gradient is 2w·h·∇G: the limit of local matching with
    ln t − ln u → 0, divided by that gap (arXiv 2303.01469, 2410.11081; for jumps to any s 2506.14603).

    velocity: whose D. "teacher": continuous distillation (sCD, 2410.11081; AYF, 2506.14603). "data": D = x₀, the velocity of the
    sample itself, so v = ε, right in the mean over ε and x₀ that give x_t (MeanFlow, arXiv 2505.13447; sCT, 2410.11081).
    "student", without gradient, and "target": the own denoiser, which `DenoisingScoreMatching` beside it makes one.
    warmup: steps from `start` in which the network's derivative comes in. With r from 0 to 1 and G = (s/t)·x + (1 − s/t)·g,

        h = (s/t)·(g − D) + r·(t − s)·dg/dt                     (tangent warm-up, 2410.11081 and 2506.14603)

    normalise: c > 0 takes h/(|h| + c), |·| the root mean square over coordinates (tangent normalisation, the same papers, c = 0.1
    there); None: h as it is. With velocity "data" the normalised mean is no longer zero at the exact flow, as |h| goes with ε.
    pairs, weight, start, guidance, estimate: as of every way; guided, D is D_∅ + w·(D_y − D_∅). h is one forward-mode derivative,
    without gradient. Raises ValueError for settings out of range.
    """

    forward_mode = True

    velocity: Velocity = "teacher"
    warmup: int = 0
    normalise: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("velocity", self.velocity, get_args(Velocity))
        if self.velocity == "data" and self.guidance is not None:
            raise ValueError(
                "guidance is of a denoiser, and velocity: data follows the samples: use velocity teacher, student or target"
            )
        if self.warmup < 0:
            raise ValueError(f"warmup is a number of steps, at least 0, got {self.warmup}")
        if self.normalise is not None and not 0 < self.normalise < math.inf:
            raise ValueError(f"normalise is the c of h/(|h| + c), above 0 and finite, or null, got {self.normalise}")

    @property
    def needs_teacher(self) -> bool:  # type: ignore[override]
        return self.velocity == "teacher"

    @property
    def _asks_target(self) -> bool:
        return self.velocity == "target"

    def draw_at(self, step: int, model: Diffusion, like: Tensor, generator: torch.Generator) -> JumpDraw:
        ramp = min(1.0, max(0, step - self.start) / self.warmup) if self.warmup else 1.0
        return replace(self.draw(model, like, generator), ramp=ramp)

    def __call__(self, networks: Networks, x0: Tensor, condition: Condition, draw: JumpDraw) -> Tensor:
        """x0 (B, …) in data space -> (B,)."""
        x_t = draw.noised(x0)
        with torch.no_grad():
            tangent = self.tangent(networks, x0, x_t, condition, draw)
        known = at_scales(condition, draw.guidance)
        end = jumper(networks.student).jump(x_t, draw.t, draw.s, known)
        self.leave_estimate(networks, end, known, draw)
        error = (end - (end - tangent).detach()).square().flatten(1).mean(1)
        return self.weight(draw.t, draw.s, networks.student.sigma_data) * error

    def tangent(self, networks: Networks, x0: Tensor, x_t: Tensor, condition: Condition, draw: JumpDraw) -> Tensor:
        """h of the samples x_t, made of x0, after warm-up and normalisation. Like x0."""
        student, t, s, denoised = jumper(networks.student), draw.t, draw.s, x0
        if self.velocity != "data":
            denoised = known_denoised(networks, self.velocity, x_t, t, condition, draw.guidance)
        known = at_scales(condition, draw.guidance)
        end, tangent = directional_derivative(lambda x, t: student.jump(x, t, s, known), (x_t, t), (x_t - denoised, t))
        if draw.ramp < 1:
            tangent = draw.ramp * tangent + (1 - draw.ramp) * _without_derivative(end, x_t, denoised, t, s)
        if self.normalise is not None:
            size = tangent.square().flatten(1).mean(1).sqrt()
            tangent = tangent / match_dims(size + self.normalise, x0)
        return tangent

    def teacher_evaluations(self, draw: JumpDraw) -> int:
        return int(self.needs_teacher) * (1 if draw.guidance is None else 2)

    @property
    def _for_the_end(self) -> str:
        return ", or pairs with to_end: 1"


def _without_derivative(end: Tensor, x: Tensor, denoised: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """(s/t)·(g − D), with g of the jump x -> end; 0 where s = t, where the jump does not depend on g. Like x."""
    ratio = match_dims(s / t, x)
    g = (end - ratio * x) / (1 - ratio).masked_fill(ratio == 1, 1.0)
    return torch.where(ratio == 1, 0.0, ratio * (g - denoised))
