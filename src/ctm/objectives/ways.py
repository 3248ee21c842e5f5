"""What the ways to teach a jump without a solver's walk share: the draw of a jump's ends, and whose velocity is followed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from ctm.conditions import Condition
from ctm.models import ConsistencyModel
from ctm.models.protocol import Denoiser, Diffusion, denoiser_of, taken_by
from ctm.noise import match_dims, normal_like
from ctm.objectives.base import Draw, Networks, Objective
from ctm.objectives.pairs import KarrasPairs, Pairs
from ctm.weighting import uniform

__all__ = ["JumpDraw", "Way", "check_choice", "denoised_by", "network_of"]

Role = Literal["teacher", "student", "target"]


@dataclass(frozen=True)
class JumpDraw(Draw):
    """The random numbers of one step: t and s (B,), noise (B, …) standard normal. share (B,): in [0, 1], uniform, for what a way
    draws besides. ramp: how far a warm-up has come, in [0, 1]."""

    t: Tensor
    s: Tensor
    noise: Tensor
    share: Tensor
    ramp: float = 1.0

    def rows(self, part: slice) -> JumpDraw:
        return JumpDraw(self.t[part], self.s[part], self.noise[part], self.share[part], self.ramp)

    def noised(self, x0: Tensor) -> Tensor:
        """x_t = x_0 + t·ε, like x0."""
        return x0 + match_dims(self.t, x0) * self.noise


@dataclass(frozen=True)
class Way(Objective):
    """A loss on jumps t → s whose ends are drawn freely.

    pairs: how t and s are drawn, `ctm.objectives.KarrasPairs` or `LognormalPairs`. weight: w(t, s, σ_d), see ctm.weighting.
    start: first step with it. Raises ValueError for a start below 0."""

    pairs: Pairs = field(default_factory=KarrasPairs)
    weight: Callable[[Tensor, Tensor, float], Tensor] = uniform
    start: int = 0

    def __post_init__(self) -> None:
        if self.start < 0:
            raise ValueError(f"start must be at least 0, got {self.start}")

    def active(self, step: int) -> bool:
        return step >= self.start

    def draw(self, model: Diffusion, like: Tensor, generator: torch.Generator) -> JumpDraw:
        """The random numbers for a batch like `like` (B, …)."""
        t, s = self.pairs(len(like), model.sigma_min, model.sigma_max, generator)
        share = torch.rand(len(like), generator=generator)
        return JumpDraw(t.to(like), s.to(like), normal_like(like, generator), share.to(like))

    def check(self, student: Diffusion, teacher: Denoiser | None) -> None:
        """Raises ValueError for a student that jumps to the end only, where other jumps are drawn."""
        if isinstance(student, ConsistencyModel) and not self.pairs.only_to_end:
            raise ValueError(
                f"{type(self).__name__} teaches jumps to any level, and a consistency model jumps to sigma_min only: use model "
                "kind trajectory" + self._for_the_end
            )

    @property
    def _for_the_end(self) -> str:
        """What else there is to do, for a way that can teach jumps to the end alone."""
        return ""


def check_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    """Raises ValueError for a value that is not allowed."""
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")


def network_of(networks: Networks, role: Role) -> Denoiser:
    """The network of that role. Raises ValueError where there is none."""
    found: Denoiser | None = getattr(networks, role)
    if found is None:
        raise ValueError(f"there is no {role} here: give one in Networks")
    return found


def denoised_by(networks: Networks, role: Role, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
    """D(x, t) of the network of that role, which makes its velocity (x − D(x, t))/t. Like x."""
    model = network_of(networks, role)
    return denoiser_of(model, taken_by(model, condition))(x, t)
