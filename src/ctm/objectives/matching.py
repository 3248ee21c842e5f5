"""Consistency matching (CTM, arXiv 2310.02279): a jump t → s must agree with the solver's walk t → u and the jump u → s."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from types import MappingProxyType
from typing import Literal, get_args

import torch
from torch import Tensor

from ctm.conditions import Condition
from ctm.models.protocol import Denoiser, Diffusion
from ctm.noise import (
    Times,
    continuous_times,
    draw_solver_steps,
    draw_span,
    grid_times,
    karras_grid,
    match_dims,
    normal_like,
)
from ctm.objectives.base import Draw, Networks, Objective
from ctm.objectives.distances import Distance, Squared
from ctm.objectives.guiding import at_scales, check_guided, check_range, draw_scales, guided_by
from ctm.objectives.matching_times import MatchingTimes
from ctm.objectives.rows import Moves, jump_rows, untracked
from ctm.objectives.walk_ends import WalkEnd, draw_levels_passed, levels_below
from ctm.objectives.walks import TeacherWalk, Walk
from ctm.weighting import uniform

__all__ = ["Matching", "MatchingDraw"]

Role = Literal["student", "target"]
NONE_KNOWN: Mapping[str, Moves] = MappingProxyType({})
_OF_THE_GRID = ("grid_points", "max_solver_steps", "solver_steps_power", "solver_steps", "rho", "continuous")


@dataclass(frozen=True)
class MatchingDraw(Draw):
    """The random numbers of one step: times of B samples, noise (B, …), standard normal, and the guidance scale (B,) where
    there is one. moves: by the name of a jump ("u → s", "s → end", "u → end") which rows it moves; of a jump without an entry
    all rows are computed. more: the other levels that the walks are used at."""

    times: Times
    noise: Tensor
    guidance: Tensor | None = None
    moves: Mapping[str, Moves] = field(default_factory=dict)
    more: tuple[WalkEnd, ...] = ()

    def rows(self, part: slice) -> MatchingDraw:
        guidance = None if self.guidance is None else self.guidance[part]
        moves = {name: moved.part(part) for name, moved in self.moves.items()}
        more = tuple(end.rows(part) for end in self.more)
        return MatchingDraw(self.times.rows(part), self.noise[part], guidance, moves, more)


def moves_of(times: Times, end: float) -> dict[str, Moves]:
    """Which rows each jump moves that may stay at its level. times: on the CPU, in the precision of the jumps. end: sigma_min."""
    low = torch.full_like(times.s, end)
    pairs = {"u → s": (times.u, times.s), "s → end": (times.s, low), "u → end": (times.u, low)}
    return {name: Moves.between(*pair) for name, pair in pairs.items()}


@dataclass(frozen=True)
class Matching(Objective):
    """w·d(estimate, target), compared in data space after one more jump by the EMA target network (CTM, arXiv 2310.02279):

        x_t = x₀ + t·ε;   estimate = G_ema(G_student(x_t, t, s), s, σ_min), gradient through the outer network's input
        x_u = Solver(x_t, t → u);   target = stopgrad G_ema(G_student(x_u, u, s), s, σ_min)

    kind: "soft" draws the number k of solver steps, "local" takes one, "global" lets the solver walk all the way, u = s.
    grid_points: N levels of the Karras grid. max_solver_steps: largest k (N − 1 where None). solver_steps_power:
    P(k) ∝ k^power; 0 is uniform. solver_steps: this k always. continuous: times at real-valued Karras coordinates, where the
    length of the walk has that density (official code: power 0) or is k spacings of the grid. s: "end" puts it at σ_min.
    compare: "data", or "s" without the last jumps. distance: (a, b) -> (B,).
    solver: the way t → u, see ctm.objectives.walks. weight: w(t, s, σ_d), see ctm.weighting.
    estimate_outer, target_outer: who makes the last jump of each. target_inner: who makes the target's jump u → s; "none"
    lets it jump from u to the end. estimate_at: "u" lets the estimate jump t → u → end, while the target goes by s (code:
    ctm_target_matching).
    guidance: [low, high] lets the walk follow the teacher guided at a scale w, D_∅ + w·(D_y − D_∅), drawn uniformly from that
    range for each sample (arXiv 2210.03142) and given to student and target as an input: their network needs
    guidance_embedding. A sample whose label was left out has w = 1. Each of the teacher's evaluations becomes two.
    targets: how many (u, s) each walk serves. The first u is the walk's end; the others are uniform among the levels that the
    walk passes, each with an s of its own. The loss is their mean.
    grow: the largest k rises evenly from 1 to its whole in the first `grow` steps, so that walks are short first.
    times: draws t, u and s itself, in place of all settings of the grid, for kind "local" (`ShrinkingGap`). gap_power: the loss
    is multiplied by (t − u)^(−gap_power); 1 is the weight of arXiv 2310.14189 and 2406.14548.
    start: first step with it. Without a teacher score matching alone makes a denoiser before that, for the walk to follow.
    Raises ValueError for settings out of range or that contradict each other.

    kind "local", s "end" and target_inner "target" is consistency distillation (arXiv 2303.01469, eq. 7), and consistency
    training (eq. 10) with the solver `SameNoise`: no last jump is left there. With target_inner "student", times `ShrinkingGap`
    and gap_power 1 that is consistency tuning (ECT, arXiv 2406.14548).
    """

    needs_target = True
    makes = ("estimate",)

    kind: Literal["soft", "local", "global"] = "soft"
    grid_points: int = 18
    max_solver_steps: int | None = None
    solver_steps_power: float = 1.0
    solver_steps: int | None = None
    rho: float = 7.0
    continuous: bool = False
    s: Literal["drawn", "end"] = "drawn"
    compare: Literal["data", "s"] = "data"
    distance: Distance = field(default_factory=Squared)
    solver: Walk = field(default_factory=TeacherWalk)
    weight: Callable[[Tensor, Tensor, float], Tensor] = uniform
    estimate_outer: Role = "target"
    estimate_at: Literal["s", "u"] = "s"
    target_outer: Role = "target"
    target_inner: Literal["student", "target", "none"] = "student"
    guidance: tuple[float, float] | None = None
    times: MatchingTimes | None = None
    gap_power: float = 0.0
    targets: int = 1
    grow: int = 0
    start: int = 0

    def __post_init__(self) -> None:
        if self.kind not in ("soft", "local", "global"):
            raise ValueError(f"kind must be soft, local or global, got {self.kind!r}")
        for name, allowed in (("estimate_outer", get_args(Role)), ("target_outer", get_args(Role))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        if self.target_inner not in ("student", "target", "none") or self.estimate_at not in ("s", "u"):
            raise ValueError(
                "target_inner must be student, target or none and estimate_at s or u, "
                f"got {self.target_inner!r} and {self.estimate_at!r}"
            )
        if self.s not in ("drawn", "end") or self.compare not in ("data", "s"):
            raise ValueError(f"s must be drawn or end and compare data or s, got {self.s!r} and {self.compare!r}")
        if self.kind == "global" and self.s == "end":
            raise ValueError("kind global puts s at u, and s: end puts it at sigma_min: choose one of them")
        if self.compare == "s" and (self.estimate_at == "u" or self.target_inner == "none"):
            raise ValueError("compare: s needs both sides at s: estimate_at s, and target_inner student or target")
        if self.kind == "local" and self.solver_steps not in (None, 1):
            raise ValueError(f"kind local is one solver step, got solver_steps {self.solver_steps}: use kind soft")
        self._check_times()
        self._check_walks()
        if self.grid_points < 2:
            raise ValueError(f"grid_points must be at least 2, got {self.grid_points}")
        if self.guidance is not None:
            check_range(self.guidance)
            if not self.needs_teacher:
                raise ValueError(
                    f"guidance is the teacher's, but {type(self.solver).__name__} asks none: use TeacherWalk or MultistepWalk"
                )
        if self.start < 0:
            raise ValueError(f"start must be at least 0, got {self.start}")
        for name in ("max_solver_steps", "solver_steps"):
            value = getattr(self, name)
            if value is not None and not 1 <= value < self.grid_points:
                raise ValueError(f"{name} must be in 1 … grid_points − 1 = {self.grid_points - 1}, got {value}")

    def _check_times(self) -> None:
        if not math.isfinite(self.gap_power):
            raise ValueError(f"gap_power must be finite, got {self.gap_power}")
        if self.times is None:
            return
        own = {entry.name: entry.default for entry in fields(self)}
        unused = [name for name in _OF_THE_GRID if getattr(self, name) != own[name]]
        if self.kind != "local" or unused:
            raise ValueError(
                f"times ({type(self.times).__name__}) draws t, u and s, one solver step apart: set kind to local, and leave "
                f"{', '.join(_OF_THE_GRID)} at their defaults"
                + (f", got another {', '.join(unused)}" if unused else "")
            )

    def _check_walks(self) -> None:
        if self.targets < 1 or self.grow < 0:
            raise ValueError(f"targets must be at least 1 and grow at least 0, got {self.targets} and {self.grow}")
        if self.targets > 1 and (self.kind == "local" or not self.solver.passes):
            raise ValueError(
                f"targets {self.targets} needs walks that pass other levels on their way: kind soft or global, and a solver that "
                f"goes step by step, got kind {self.kind} and {type(self.solver).__name__}"
            )
        if self.grow and self.fixed is not None:
            raise ValueError(f"grow lets the drawn number of solver steps grow, and here it is always {self.fixed}")

    def active(self, step: int) -> bool:
        return step >= self.start

    def longest_at(self, step: int) -> int:
        """The largest number of solver steps that a draw of step `step` can give."""
        if not self.grow:
            return self.largest
        return max(1, math.ceil(self.largest * min(1.0, (step - self.start + 1) / self.grow)))

    @property
    def largest(self) -> int:
        """The largest number of solver steps a draw can give."""
        if self.fixed is not None:
            return self.fixed
        return self.grid_points - 1 if self.max_solver_steps is None else self.max_solver_steps

    @property
    def fixed(self) -> int | None:
        """The number of solver steps where it is always the same."""
        return 1 if self.kind == "local" else self.solver_steps

    def on_grid(self, points: int) -> Matching:
        """This objective on a Karras grid of `points` levels, with no more solver steps than that has. Raises ValueError where
        it has no grid."""
        if self.times is not None:
            raise ValueError(
                f"schedule changes the grid of Matching, and with times ({type(self.times).__name__}) there is none: leave one "
                "of them out"
            )
        most, fixed = (None if k is None else min(k, points - 1) for k in (self.max_solver_steps, self.solver_steps))
        return replace(self, grid_points=points, max_solver_steps=most, solver_steps=fixed)

    def draw(self, model: Diffusion, like: Tensor, generator: torch.Generator) -> MatchingDraw:
        """The random numbers for a batch like `like` (B, …); one k for the whole batch."""
        return self.draw_at(self.start, model, like, generator)

    def draw_at(self, step: int, model: Diffusion, like: Tensor, generator: torch.Generator) -> MatchingDraw:
        times = self._in_precision(self._times(step, model, like, generator), model, like)
        noise, scales = normal_like(like, generator), draw_scales(self.guidance, like, generator)
        more = tuple(self._another_end(times.path, model, like, generator) for _ in range(self.targets - 1))
        moves = moves_of(times, model.sigma_min)
        return MatchingDraw(Times(times.path.to(like), times.s.to(like)), noise, scales, moves, more)

    def _in_precision(self, times: Times, model: Diffusion, like: Tensor) -> Times:
        """The times on the CPU in like's precision, with s at the end where the settings put it there."""
        s = times.s if self.s == "drawn" else torch.full_like(times.s, model.sigma_min)
        return Times(times.path.to(like.dtype), s.to(like.dtype))

    def _another_end(self, path: Tensor, model: Diffusion, like: Tensor, generator: torch.Generator) -> WalkEnd:
        step, u = draw_levels_passed(path, generator)
        s, ends = u, (model.sigma_min, model.sigma_max, self.rho)
        if self.kind != "global":
            grid = None if self.continuous else karras_grid(self.grid_points - 1, *ends, dtype=like.dtype)
            s = levels_below(u, grid, *ends, generator)
        times = self._in_precision(Times(torch.stack([path[0], u]), s), model, like)
        moves = moves_of(times, model.sigma_min)
        return WalkEnd(step.to(like.device), Times(times.path.to(like), times.s.to(like)), moves)

    def _times(self, step: int, model: Diffusion, like: Tensor, generator: torch.Generator) -> Times:
        n, ends = len(like), (model.sigma_min, model.sigma_max, self.rho)
        if self.times is not None:
            return self.times(n, step - self.start, *ends[:2], generator)
        s_from_u, most = self.kind == "global", self.longest_at(step)
        if self.continuous:
            if self.fixed is None:
                span = draw_span(most / self.grid_points, self.solver_steps_power, generator=generator)
            else:
                span = self.fixed / (self.grid_points - 1)
            steps = self.fixed or max(1, round(span * self.grid_points))
            return continuous_times(n, steps, span, *ends, s_from_u=s_from_u, dtype=like.dtype, generator=generator)
        grid = karras_grid(self.grid_points - 1, *ends, dtype=like.dtype)
        steps = self.fixed or draw_solver_steps(most, self.solver_steps_power, generator=generator)
        return grid_times(n, grid, steps, s_from_u=s_from_u, generator=generator)

    @property
    def needs_teacher(self) -> bool:  # type: ignore[override]
        return self.solver.needs_teacher

    @property
    def chains_student(self) -> bool:  # type: ignore[override]
        return self.estimate_outer == "student" and self._last_jump

    @property
    def _last_jump(self) -> bool:
        """Whether the estimate jumps on, from s to the end."""
        return self.compare == "data" and not (self.s == "end" and self.estimate_at == "s")

    def __call__(self, networks: Networks, x0: Tensor, condition: Condition, draw: MatchingDraw) -> Tensor:
        """x0 (B, …) in data space -> (B,)."""
        x_t = x0 + match_dims(draw.times.t, x0) * draw.noise
        known, guided = at_scales(condition, draw.guidance), guided_by(networks, draw.guidance)
        first = self.estimate(networks, x_t, draw.times, known, draw.moves)
        path = draw.times.path
        if not draw.more:
            ends = untracked(lambda: self.solver(guided, x_t.detach(), path, condition, x0))[None]
        else:
            ends = untracked(lambda: torch.stack(list(self.solver.states(guided, x_t.detach(), path, condition))))
        losses = [self._compared(networks, first, ends[-1], draw.times, known, draw.moves)]
        for end in draw.more:
            estimate = self.estimate(networks, x_t, end.times, known, end.moves)
            losses.append(self._compared(networks, estimate, end.of(ends), end.times, known, end.moves))
        networks.made["estimate"] = first
        return losses[0] if len(losses) == 1 else torch.stack(losses).mean(0)

    def _compared(
        self,
        networks: Networks,
        estimate: Tensor,
        x_u: Tensor,
        times: Times,
        condition: Condition,
        moves: Mapping[str, Moves],
    ) -> Tensor:
        """The losses (B,) of an estimate against what comes of x_u."""
        with torch.no_grad():
            target = self.target(networks, x_u, times, condition, moves)
        distance = self.distance.between(networks, estimate, target)
        weight = self.weight(times.t, times.s, networks.student.sigma_data)
        return (weight * (times.t - times.u) ** -self.gap_power if self.gap_power else weight) * distance

    def make(self, networks: Networks, x0: Tensor, condition: Condition, draw: MatchingDraw) -> None:
        networks.made["estimate"] = self.fake(networks, x0, condition, draw)

    def fake(self, networks: Networks, x0: Tensor, condition: Condition, draw: MatchingDraw) -> Tensor:
        """The estimate alone, without its target: what the discriminator learns from."""
        x_t = x0 + match_dims(draw.times.t, x0) * draw.noise
        return self.estimate(networks, x_t, draw.times, at_scales(condition, draw.guidance), draw.moves)

    def estimate(
        self,
        networks: Networks,
        x_t: Tensor,
        times: Times,
        condition: Condition,
        moves: Mapping[str, Moves] = NONE_KNOWN,
    ) -> Tensor:
        """The student's jump from t and the outer jump after it (none for compare s); in data space, the adversarial fake.

        condition: as the student gets it, with the guidance scale. moves: as of `MatchingDraw`."""
        name, middle = ("s", times.s) if self.estimate_at == "s" else ("u", times.u)
        jumped = jump_rows(networks.student, x_t, times.t, middle, condition)
        if not self._last_jump:
            return jumped
        outer = _player(networks, self.estimate_outer)
        return _to_end(outer, jumped, middle, condition, moves.get(f"{name} → end"))

    def target(
        self,
        networks: Networks,
        x_u: Tensor,
        times: Times,
        condition: Condition,
        moves: Mapping[str, Moves] = NONE_KNOWN,
    ) -> Tensor:
        """What the estimate should be, from the solver's x_u, called without gradient. Arguments as of `estimate`."""
        outer = _player(networks, self.target_outer)
        if self.target_inner == "none":
            return untracked(lambda: _to_end(outer, x_u, times.u, condition, moves.get("u → end")))
        inner = _player(networks, self.target_inner)
        jumped = jump_rows(inner, x_u, times.u, times.s, condition, moves.get("u → s"))
        if self.compare == "s" or self.s == "end":
            return jumped
        return untracked(lambda: _to_end(outer, jumped, times.s, condition, moves.get("s → end")))

    def teacher_evaluations(self, draw: MatchingDraw) -> int:
        each = 1 if draw.guidance is None else 2
        return each * self.solver.teacher_evaluations(len(draw.times.path) - 1)

    def check(self, student: Diffusion, teacher: Denoiser | None) -> None:
        """Raises ValueError where guidance is asked for and the student does not take it, or the teacher has no classes."""
        if self.guidance is not None:
            check_guided(student, teacher)


def _player(networks: Networks, role: Role) -> Diffusion:
    found = networks.student if role == "student" else networks.target
    if found is None:
        raise ValueError("Matching needs the target network, the average of the student: give one")
    return found


def _to_end(model: Diffusion, x: Tensor, level: Tensor, condition: Condition, moves: Moves | None) -> Tensor:
    """The jump from `level` (B,) to sigma_min."""
    return jump_rows(model, x, level, torch.full_like(level, model.sigma_min), condition, moves)
