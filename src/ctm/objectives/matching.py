"""Consistency matching (CTM §2.1): a jump t → s must agree with the solver's walk t → u followed by the jump u → s."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ctm.noise import Times, continuous_times, draw_solver_steps, grid_times, karras_grid, match_dims
from ctm.objectives.base import Draw, Networks, Objective
from ctm.objectives.distances import Distance, Squared
from ctm.objectives.walks import TeacherWalk, Walk
from ctm.weighting import uniform

__all__ = ["Matching", "MatchingDraw"]

Role = Literal["student", "target"]


@dataclass(frozen=True)
class MatchingDraw(Draw):
    """The random numbers of one step: times of B samples and noise (B, …), standard normal."""

    times: Times
    noise: Tensor

    def rows(self, part: slice) -> MatchingDraw:
        return MatchingDraw(self.times.rows(part), self.noise[part])


@dataclass(frozen=True)
class Matching(Objective):
    """w·d(estimate, target), compared in data space after one more jump by the EMA target network (paper eq. 10–12):

        x_t = x₀ + t·ε;   estimate = G_ema(G_student(x_t, t, s), s, σ_min), gradient through the outer network's input
        x_u = Solver(x_t, t → u);   target = stopgrad G_ema(G_student(x_u, u, s), s, σ_min)

    kind: "soft" draws the number k of solver steps, "local" takes one, "global" lets the solver walk all the way, u = s.
    grid_points: N levels of the Karras grid. max_solver_steps: largest k (N − 1 where None). solver_steps_power:
    P(k) ∝ k^power; 0 is uniform. continuous: times at real-valued Karras coordinates. distance: (a, b) -> (B,).
    solver: the way t → u, the teacher's Heun steps or the target's own jumps. weight: w(t, s, σ_d), see ctm.weighting.
    estimate_outer, target_outer: who makes the last jump of each. target_inner: who makes the target's jump u → s; "none"
    lets it jump from u to the end. estimate_at: "u" lets the estimate jump t → u → end, while the target goes by s (code:
    ctm_target_matching). Raises ValueError for settings out of range.
    """

    needs_target = True

    kind: Literal["soft", "local", "global"] = "soft"
    grid_points: int = 18
    max_solver_steps: int | None = None
    solver_steps_power: float = 1.0
    rho: float = 7.0
    continuous: bool = False
    distance: Distance = field(default_factory=Squared)
    solver: Walk = field(default_factory=TeacherWalk)
    weight: Callable[[Tensor, Tensor, float], Tensor] = uniform
    estimate_outer: Role = "target"
    estimate_at: Literal["s", "u"] = "s"
    target_outer: Role = "target"
    target_inner: Literal["student", "target", "none"] = "student"

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
        if self.grid_points < 2:
            raise ValueError(f"grid_points must be at least 2, got {self.grid_points}")
        if self.max_solver_steps is not None and not 1 <= self.max_solver_steps < self.grid_points:
            raise ValueError(
                f"max_solver_steps must be in 1 … grid_points − 1 = {self.grid_points - 1}, got {self.max_solver_steps}"
            )

    @property
    def largest(self) -> int:
        """The largest number of solver steps a draw can give."""
        if self.kind == "local":
            return 1
        return self.grid_points - 1 if self.max_solver_steps is None else self.max_solver_steps

    def draw(self, model: Any, like: Tensor, generator: torch.Generator) -> MatchingDraw:
        """The random numbers for a batch like `like` (B, …); one k for the whole batch."""
        n, ends = len(like), (model.sigma_min, model.sigma_max, self.rho)
        s_from_u = self.kind == "global"
        if self.continuous:
            span = torch.rand((), generator=generator, device=generator.device, dtype=torch.float64).item()
            span = max(span, 1e-3) * self.largest / self.grid_points
            steps = max(1, round(span * self.grid_points))
            times = continuous_times(n, steps, span, *ends, s_from_u=s_from_u, dtype=like.dtype, generator=generator)
        else:
            grid = karras_grid(self.grid_points - 1, *ends, dtype=like.dtype, device=like.device)
            steps = draw_solver_steps(self.largest, self.solver_steps_power, generator=generator)
            times = grid_times(n, grid, steps, s_from_u=s_from_u, generator=generator)
        noise = torch.randn(like.shape, generator=generator, device=generator.device)
        return MatchingDraw(Times(times.path.to(like), times.s.to(like)), noise.to(like))

    @property
    def needs_teacher(self) -> bool:  # type: ignore[override]
        return self.solver.needs_teacher

    @property
    def chains_student(self) -> bool:  # type: ignore[override]
        return self.estimate_outer == "student"

    def __call__(self, networks: Networks, x0: Tensor, labels: Tensor | None, draw: MatchingDraw) -> Tensor:
        """x0 (B, …) in data space -> (B,)."""
        times = draw.times
        x_t = x0 + match_dims(times.t, x0) * draw.noise
        with torch.no_grad():
            x_u = self.solver(networks, x_t, times.path, labels)
            target = self.target(networks, x_u, times, labels)
        estimate = networks.made["estimate"] = self.estimate(networks, x_t, times, labels)
        distance = self.distance(estimate, target)
        return self.weight(times.t, times.s, networks.student.sigma_data) * distance

    def fake(self, networks: Networks, x0: Tensor, labels: Tensor | None, draw: MatchingDraw) -> Tensor:
        """The estimate alone, without its target: what the discriminator learns from."""
        return self.estimate(networks, x0 + match_dims(draw.times.t, x0) * draw.noise, draw.times, labels)

    def estimate(self, networks: Networks, x_t: Tensor, times: Times, labels: Tensor | None) -> Tensor:
        """The student's jump from t and the outer jump after it; also the fake of the adversarial loss."""
        outer = _player(networks, self.estimate_outer)
        middle = times.s if self.estimate_at == "s" else times.u
        end = torch.full_like(times.s, networks.student.sigma_min)
        return outer.jump(networks.student.jump(x_t, times.t, middle, labels), middle, end, labels)

    def target(self, networks: Networks, x_u: Tensor, times: Times, labels: Tensor | None) -> Tensor:
        """What the estimate should be, from the solver's x_u."""
        outer, end = _player(networks, self.target_outer), torch.full_like(times.s, networks.student.sigma_min)
        if self.target_inner == "none":
            return outer.jump(x_u, times.u, end, labels)
        inner = _player(networks, self.target_inner)
        return outer.jump(inner.jump(x_u, times.u, times.s, labels), times.s, end, labels)

    def teacher_evaluations(self, draw: MatchingDraw) -> int:
        return self.solver.teacher_evaluations(len(draw.times.path) - 1)


def _player(networks: Networks, role: Role) -> Any:
    return {"student": networks.student, "target": networks.target}[role]
