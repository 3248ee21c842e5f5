"""The semigroup property of the flow: one jump is two jumps. Self-distillation of short jumps into long ones."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor

from ctm.conditions import Condition
from ctm.models.protocol import jumper
from ctm.objectives.base import Networks
from ctm.objectives.distances import Distance, Squared
from ctm.objectives.guiding import at_scales
from ctm.objectives.ways import JumpDraw, Way, check_choice, network_of

__all__ = ["Semigroup"]

Jumper = Literal["student", "target"]
_RHO = 7.0


@dataclass(frozen=True)
class Semigroup(Way):
    """w·d(G(x_t, t, s), stopgrad G′(G′(x_t, t, u), u, s)), x_t = x₀ + t·ε, s < u < t: no teacher.

    Shortcut models (arXiv 2410.12557) and progressive self-distillation (2505.18825). Every semigroup of maps has no loss, the
    flow among them; `DenoisingScoreMatching` beside it makes the shortest jumps the flow's.

    middle: "half" puts u halfway between t and s in the Karras coordinate (as shortcut models halve the steps of theirs), "drawn"
    anywhere between. by: whose two jumps G′ are: "target", the student's average, as in shortcut models, or "student", its own
    without gradient (2505.18825), which nothing damps where the student drifts. distance: (a, b) -> (B,).
    pairs, weight, start, guidance, estimate: as of every way. With guidance it needs `DenoisingScoreMatching` with the same range
    beside it, which makes the shortest jumps the guided flow's. Raises ValueError for settings out of range.

    `Matching` with the solver `TargetJump` compares the same two ways to s, with these differences. Its levels lie on a grid, u
    being k points below t. There the average jumps t → u, and the student u → s. It compares at the end, after one more jump
    of the average from s, through which the gradient goes; here the comparison is at s. With `compare: s` and
    `target_inner: target` there, only the levels differ from `by: target` here.
    """

    middle: Literal["half", "drawn"] = "half"
    by: Jumper = "target"
    distance: Distance = field(default_factory=Squared)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("middle", self.middle, ("half", "drawn"))
        check_choice("by", self.by, get_args(Jumper))

    @property
    def _asks_target(self) -> bool:
        return self.by == "target"

    def between(self, draw: JumpDraw) -> Tensor:
        """u (B,) with s ≤ u ≤ t."""
        share = 0.5 if self.middle == "half" else draw.share
        top, bottom = draw.t ** (1 / _RHO), draw.s ** (1 / _RHO)
        return ((top + share * (bottom - top)) ** _RHO).clamp(draw.s, draw.t)

    def __call__(self, networks: Networks, x0: Tensor, condition: Condition, draw: JumpDraw) -> Tensor:
        """x0 (B, …) in data space -> (B,)."""
        x_t, t, s, u = draw.noised(x0), draw.t, draw.s, self.between(draw)
        short, known = jumper(network_of(networks, self.by)), at_scales(condition, draw.guidance)
        end = jumper(networks.student).jump(x_t, t, s, known)
        self.leave_estimate(networks, end, known, draw)
        with torch.no_grad():
            target = short.jump(short.jump(x_t, t, u, known), u, s, known)
        distance = self.distance.between(networks, end, target)
        return self.weight(t, s, networks.student.sigma_data) * distance
