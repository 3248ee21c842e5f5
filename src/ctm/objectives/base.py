"""What every objective is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ctm.conditions import Condition
from ctm.models.protocol import Denoiser, Diffusion

if TYPE_CHECKING:
    from ctm.objectives.player import Player

__all__ = ["Draw", "Networks", "Objective"]


@dataclass(frozen=True)
class Networks:
    """Who takes part: the student (trained), the target (its EMA, frozen), the teacher (anything with denoise) and the networks
    of players by their names, such as "discriminator". `made`: what objectives of this step made for others; `Matching` leaves
    its "estimate" there, the fake of `Adversarial`."""

    student: Diffusion
    target: Diffusion | None = None
    teacher: Denoiser | None = None
    players: Mapping[str, nn.Module] = field(default_factory=dict)
    made: dict[str, Tensor] = field(default_factory=dict)

    def player(self, name: str) -> nn.Module:
        """The network of the player of that name. Raises ValueError where there is none."""
        if name not in self.players:
            there = ", ".join(self.players) or "none"
            raise ValueError(
                f"there is no network of a player {name!r} here (there are: {there}): give it in `players`"
            )
        return self.players[name]


class Draw(ABC):
    """The random numbers of one objective in one step, for a whole batch over all processes."""

    @abstractmethod
    def rows(self, part: slice) -> Draw:
        """Those of a part of the batch."""


class Objective(ABC):
    """A loss for each sample. Randomness and computation are apart: `draw` makes the random numbers of a global batch, from
    which each process takes its rows, and the call is a deterministic function of them."""

    needs_target = False
    needs_teacher = False
    chains_student = False  # whether the student's output goes through the student again, with gradient
    forward_mode = False  # whether it takes forward-mode derivatives of the student
    makes: tuple[str, ...] = ()  # what it leaves in `Networks.made` and makes alone by `make`
    weight_range = (0.0, 1e4)  # of its adaptive weight (VQGAN's, arXiv 2012.09841)

    def active(self, step: int) -> bool:
        """Whether it takes part in this step (from 0)."""
        return True

    @abstractmethod
    def draw(self, model: Diffusion, like: Tensor, generator: torch.Generator) -> Any:
        """The random numbers for a batch like `like` (B, …); model gives sigma_min and sigma_max. generator: on the CPU, where
        all but the noise is drawn, so that nothing waits for the device of `like`."""

    def draw_at(self, step: int, model: Diffusion, like: Tensor, generator: torch.Generator) -> Any:
        """`draw` in step `step` (from 0), for an objective whose draws change in a run."""
        return self.draw(model, like, generator)

    @abstractmethod
    def __call__(self, networks: Networks, x0: Tensor, condition: Condition, draw: Any) -> Tensor:
        """x0 (B, …) in data space, condition: of the B samples, or None, draw from `draw` -> losses (B,)."""

    def make(self, networks: Networks, x0: Tensor, condition: Condition, draw: Any) -> None:  # noqa: B027
        """Leave in `networks.made` what `makes` names, as the call does, and no more: what players learn from in a step without
        the student. Called without gradient, with the arguments of the call."""

    def player(self) -> Player | None:
        """The network that learns beside the student for this objective, None where it has none of its own."""
        return None

    def on_grid(self, points: int) -> Objective:
        """This objective in a step whose grid has that many levels; itself where it has no grid."""
        return self

    def check(self, student: Diffusion, teacher: Denoiser | None) -> None:  # noqa: B027
        """Raises ValueError where student and teacher do not fit, before the first step."""

    def teacher_evaluations(self, draw: Any) -> int:
        """How often the teacher was evaluated on each sample."""
        return 0
