"""What the ways to teach a jump without a solver's walk share: the draw of a jump's ends, and whose velocity is followed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from ctm.conditions import Condition
from ctm.models import ConsistencyModel
from ctm.models.guided import ClassifierFree
from ctm.models.protocol import Denoiser, Diffusion, denoiser_of, taken_by
from ctm.noise import match_dims, normal_like
from ctm.objectives.base import Draw, Networks, Objective
from ctm.objectives.guiding import at_scales, check_guided, check_range, draw_scales
from ctm.objectives.pairs import KarrasPairs, Pairs
from ctm.objectives.rows import Moves, jump_rows, untracked
from ctm.weighting import uniform

__all__ = ["JumpDraw", "Way", "check_choice", "denoised_by", "known_denoised", "network_of"]

Role = Literal["teacher", "student", "target"]


@dataclass(frozen=True)
class JumpDraw(Draw):
    """The random numbers of one step: t and s (B,), noise (B, …) standard normal. share (B,): in [0, 1], uniform, for what a way
    draws besides. ramp: how far a warm-up has come, in [0, 1]. guidance (B,): scales, where there are any. moves: which rows the
    jump s → sigma_min moves; None: all are computed."""

    t: Tensor
    s: Tensor
    noise: Tensor
    share: Tensor
    ramp: float = 1.0
    guidance: Tensor | None = None
    moves: Moves | None = None

    def rows(self, part: slice) -> JumpDraw:
        numbers = (self.t[part], self.s[part], self.noise[part], self.share[part])
        scales = None if self.guidance is None else self.guidance[part]
        return JumpDraw(*numbers, self.ramp, scales, None if self.moves is None else self.moves.part(part))

    def noised(self, x0: Tensor) -> Tensor:
        """x_t = x_0 + t·ε, like x0."""
        return x0 + match_dims(self.t, x0) * self.noise


@dataclass(frozen=True)
class Way(Objective):
    """A loss on jumps t → s whose ends are drawn freely.

    pairs: how t and s are drawn, `ctm.objectives.KarrasPairs` or `LognormalPairs`. weight: w(t, s, σ_d), see ctm.weighting.
    start: first step with it. guidance: [low, high] draws a scale w for each sample and gives it to the student as an input. The
    student then follows the flow guided at w, as in `Matching`. estimate: whether the student's jumps, brought on to sigma_min
    by its average, are left for `Adversarial` to judge. Raises ValueError for settings out of range."""

    pairs: Pairs = field(default_factory=KarrasPairs)
    weight: Callable[[Tensor, Tensor, float], Tensor] = uniform
    start: int = 0
    guidance: tuple[float, float] | None = None
    estimate: bool = False

    def __post_init__(self) -> None:
        if self.start < 0:
            raise ValueError(f"start must be at least 0, got {self.start}")
        if self.guidance is not None:
            check_range(self.guidance)

    @property
    def makes(self) -> tuple[str, ...]:  # type: ignore[override]
        return ("estimate",) if self.estimate else ()

    @property
    def needs_target(self) -> bool:  # type: ignore[override]
        return self.estimate or self._asks_target

    @property
    def _asks_target(self) -> bool:
        """Whether the loss itself asks the student's average."""
        return False

    def active(self, step: int) -> bool:
        return step >= self.start

    def draw(self, model: Diffusion, like: Tensor, generator: torch.Generator) -> JumpDraw:
        """The random numbers for a batch like `like` (B, …)."""
        t, s = self.pairs(len(like), model.sigma_min, model.sigma_max, generator)
        share = torch.rand(len(like), generator=generator)
        noise, scales = normal_like(like, generator), draw_scales(self.guidance, like, generator)
        level = s.to(like.dtype)
        moves = Moves.between(level, torch.full_like(level, model.sigma_min)) if self.estimate else None
        return JumpDraw(t.to(like), s.to(like), noise, share.to(like), guidance=scales, moves=moves)

    def make(self, networks: Networks, x0: Tensor, condition: Condition, draw: JumpDraw) -> None:
        known = at_scales(condition, draw.guidance)
        end = jump_rows(networks.student, draw.noised(x0), draw.t, draw.s, known)
        self.leave_estimate(networks, end, known, draw)

    def leave_estimate(self, networks: Networks, end: Tensor, condition: Condition, draw: JumpDraw) -> None:
        """Leave the student's jumps to s, brought on to sigma_min by its average, where the settings ask for it."""
        if self.estimate:
            target, low = network_of(networks, "target"), torch.full_like(draw.s, networks.student.sigma_min)
            networks.made["estimate"] = jump_rows(target, end, draw.s, low, condition, draw.moves)

    def check(self, student: Diffusion, teacher: Denoiser | None) -> None:
        """Raises ValueError for a student that jumps to the end only, where other jumps are drawn, and for one that does not take
        the guidance scale where there is one."""
        if self.guidance is not None:
            check_guided(student, teacher)
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


def denoised_by(
    networks: Networks, role: Role, x: Tensor, t: Tensor, condition: Condition, scales: Tensor | None = None
) -> Tensor:
    """D(x, t) of the network of that role, which makes its velocity (x − D(x, t))/t; under classifier-free guidance where there
    are scales (B,). Like x."""
    model = network_of(networks, role)
    known = taken_by(model, condition)
    return denoiser_of(model if scales is None else ClassifierFree(model, scales), known)(x, t)


def known_denoised(
    networks: Networks, role: Role, x: Tensor, t: Tensor, condition: Condition, scales: Tensor | None = None
) -> Tensor:
    """`denoised_by` without gradient."""
    x = x.detach()
    if role != "student":
        return untracked(lambda: denoised_by(networks, role, x, t, condition, scales))
    with torch.no_grad():
        return denoised_by(networks, role, x, t, condition, scales)
