"""Lagrangian flow map matching (arXiv 2406.07507, 2505.18825): along s, a jump moves with the flow's velocity at its end."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import get_args

import torch
from torch import Tensor

from ctm.conditions import Condition
from ctm.models.protocol import Denoiser, Diffusion, jumper
from ctm.noise import match_dims
from ctm.objectives.base import Networks
from ctm.objectives.derivatives import directional_derivative
from ctm.objectives.distances import Distance, Squared
from ctm.objectives.guiding import at_scales
from ctm.objectives.ways import JumpDraw, Role, Way, check_choice, denoised_by, known_denoised

__all__ = ["Lagrangian"]


@dataclass(frozen=True)
class Lagrangian(Way):
    """w·d(G − s·∂G/∂s, D(G, s)) with G = G(x_t, t, s), x_t = x₀ + t·ε: zero just where the jump's end moves with the flow,

        ∂_s G(x_t, t, s) = v(G, s),   v(x, s) = (x − D(x, s))/s

    (flow map matching, arXiv 2406.07507, its Lagrangian distillation; self-distillation, arXiv 2505.18825). With the squared
    distance the loss is w·s²·|∂_s G − v(G, s)|²: errors of the derivative along ln s. Both sides are in data space, so any
    distance serves.

    velocity: whose D: "teacher" distils; "student" (its own, without gradient) and "target" (its average) need no teacher, but
    `DenoisingScoreMatching` beside them, which makes D the denoiser. through_velocity: whether gradients also go through G to D
    and through D (2406.07507) or through ∂G/∂s alone (2505.18825). distance: (a, b) -> (B,). pairs, weight, start, guidance,
    estimate: as of every way; guided, the velocity is that of D_∅ + w·(D_y − D_∅). ∂G/∂s is a forward-mode derivative of the
    student, with gradient. Raises ValueError for settings out of range.
    """

    forward_mode = True
    chains_student = True  # two outputs of the last layer, the value and its derivative, carry the gradient

    velocity: Role = "teacher"
    through_velocity: bool = False
    distance: Distance = field(default_factory=Squared)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("velocity", self.velocity, get_args(Role))

    @property
    def needs_teacher(self) -> bool:  # type: ignore[override]
        return self.velocity == "teacher"

    @property
    def _asks_target(self) -> bool:
        return self.velocity == "target"

    def __call__(self, networks: Networks, x0: Tensor, condition: Condition, draw: JumpDraw) -> Tensor:
        """x0 (B, …) in data space -> (B,)."""
        student, t, s = jumper(networks.student), draw.t, draw.s
        x_t, known = draw.noised(x0), at_scales(condition, draw.guidance)
        end, slope = directional_derivative(lambda s: student.jump(x_t, t, s, known), (s,), (torch.ones_like(s),))
        self.leave_estimate(networks, end, known, draw)
        if self.through_velocity:
            denoised = denoised_by(networks, self.velocity, end, s, condition, draw.guidance)
        else:
            end = end.detach()
            denoised = known_denoised(networks, self.velocity, end, s, condition, draw.guidance)
        distance = self.distance.between(networks, end - match_dims(s, x0) * slope, denoised)
        return self.weight(t, s, networks.student.sigma_data) * distance

    def teacher_evaluations(self, draw: JumpDraw) -> int:
        return int(self.needs_teacher) * (1 if draw.guidance is None else 2)

    def check(self, student: Diffusion, teacher: Denoiser | None) -> None:
        """Raises ValueError for a student that jumps to the end only: its jumps have no derivative along s."""
        super().check(student, teacher)
        if self.pairs.only_to_end:
            raise ValueError(
                "Lagrangian follows a jump along s, from s = t to the end, and pairs with to_end 1 draw no s but the end: use a "
                "smaller to_end"
            )
