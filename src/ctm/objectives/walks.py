"""How x_t comes from level t to level u in consistency matching: by the teacher's solver, by the EMA target itself, or along
the straight line to its own x_0."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import torch
from torch import Tensor

from ctm.conditions import Condition
from ctm.models.protocol import denoiser_of, jumper, taken_by
from ctm.objectives.base import Networks
from ctm.parametrization import euler_update
from ctm.solvers import DenoisingFunction, dpmpp_2m_states, heun_step, last_of, walk_states

__all__ = ["MultistepWalk", "SameNoise", "TargetJump", "TargetJumps", "TeacherWalk", "Walk"]


class Walk(ABC):
    """(networks, x at path[0], path (k + 1, B), condition, the data x0 that x was made of) -> x at path[-1], called without
    gradient. passes: whether it comes through the levels between, so that `states` gives x there."""

    needs_teacher = False
    passes = False

    @abstractmethod
    def __call__(
        self, networks: Networks, x: Tensor, path: Tensor, condition: Condition, x0: Tensor | None = None
    ) -> Tensor: ...

    def states(self, networks: Networks, x: Tensor, path: Tensor, condition: Condition) -> Iterator[Tensor]:
        """x at path[1], …, path[-1]. Raises ValueError for a walk that does not pass there."""
        raise ValueError(f"{type(self).__name__} does not come through the levels between t and u")

    def teacher_evaluations(self, steps: int) -> int:
        """How often the teacher is evaluated in a walk of that many steps."""
        return 0


class _StepByStep(Walk):
    """What the walks share that pass each level of the path."""

    passes = True

    def __call__(
        self, networks: Networks, x: Tensor, path: Tensor, condition: Condition, x0: Tensor | None = None
    ) -> Tensor:
        return last_of(self.states(networks, x, path, condition), x)


class _OnTeacher(_StepByStep):
    """What the walks on the teacher's denoiser share."""

    needs_teacher = True

    def states(self, networks: Networks, x: Tensor, path: Tensor, condition: Condition) -> Iterator[Tensor]:
        known = taken_by(networks.teacher, condition)
        return self.steps(denoiser_of(networks.teacher, known), x, path)

    @abstractmethod
    def steps(self, denoise: DenoisingFunction, x: Tensor, path: Tensor) -> Iterator[Tensor]:
        """x after each step along the path (k + 1, B)."""

    def teacher_evaluations(self, steps: int) -> int:
        return _evaluations(self, steps)


@lru_cache
def _evaluations(solver: _OnTeacher, steps: int) -> int:
    """Counted on a walk of one number, so that it is right for any solver."""
    count = 0

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        nonlocal count
        count += 1
        return torch.zeros_like(x)

    last_of(solver.steps(denoise, torch.ones(1, 1), torch.linspace(2, 1, steps + 1)[:, None]), torch.ones(1, 1))
    return count


@dataclass(frozen=True)
class TeacherWalk(_OnTeacher):
    """k steps of a one-step ODE solver on the teacher's denoiser: Solver(x_t, t, u) of CTM (arXiv 2310.02279).

    step: (denoise, x, t, s) -> x, one of ctm.solvers: `heun_step` or `midpoint_step` (two evaluations), `euler_step`
    (one)."""

    step: Callable[[DenoisingFunction, Tensor, Tensor, Tensor], Tensor] = heun_step

    def steps(self, denoise: DenoisingFunction, x: Tensor, path: Tensor) -> Iterator[Tensor]:
        return walk_states(denoise, x, path, self.step)


@dataclass(frozen=True)
class MultistepWalk(_OnTeacher):
    """k steps of DPM-Solver++ (2M) on the teacher's denoiser: order 2 with one evaluation a step, as each step but the first
    (which is Euler's) uses the step before."""

    def steps(self, denoise: DenoisingFunction, x: Tensor, path: Tensor) -> Iterator[Tensor]:
        return dpmpp_2m_states(denoise, x, path)


@dataclass(frozen=True)
class SameNoise(Walk):
    """x_u = x_0 + u·ε of the same x_0 and ε as x_t: consistency training (arXiv 2303.01469, algorithm 3), no teacher. It is
    Euler's step with x_0 in the place of D(x, t), and right on average only."""

    def __call__(
        self, networks: Networks, x: Tensor, path: Tensor, condition: Condition, x0: Tensor | None = None
    ) -> Tensor:
        if x0 is None:
            raise ValueError("SameNoise needs the data x0 that x was made of")
        return euler_update(x, x0, path[0], path[-1])


@dataclass(frozen=True)
class TargetJump(Walk):
    """One jump of the EMA target, t → u: training without a teacher (sony/ctm: self_learn)."""

    def __call__(
        self, networks: Networks, x: Tensor, path: Tensor, condition: Condition, x0: Tensor | None = None
    ) -> Tensor:
        return jumper(networks.target).jump(x, path[0], path[-1], condition)


@dataclass(frozen=True)
class TargetJumps(_StepByStep):
    """k jumps of the EMA target along the path (sony/ctm: self_learn_iterative)."""

    def states(self, networks: Networks, x: Tensor, path: Tensor, condition: Condition) -> Iterator[Tensor]:
        for t, s in pairwise(path):
            x = jumper(networks.target).jump(x, t, s, condition)
            yield x
