"""How x_t comes from level t to level u in consistency matching: by the teacher's solver, or by the EMA target itself."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor

from ctm.objectives.base import Networks
from ctm.solvers import Denoise, heun_step, walk

__all__ = ["TargetJump", "TargetJumps", "TeacherWalk", "Walk"]


class Walk(ABC):
    """(networks, x at path[0], path (k + 1, B), labels) -> x at path[-1], called without gradient."""

    needs_teacher = False

    @abstractmethod
    def __call__(self, networks: Networks, x: Tensor, path: Tensor, labels: Tensor | None) -> Tensor: ...

    def teacher_evaluations(self, steps: int) -> int:
        """How often the teacher is evaluated in a walk of that many steps."""
        return 0


@dataclass(frozen=True)
class TeacherWalk(Walk):
    """k steps of an ODE solver on the teacher's denoiser (CTM §2.1).

    step: (denoise, x, t, s) -> x, `ctm.solvers.heun_step` (two evaluations) or `euler_step` (one)."""

    needs_teacher = True

    step: Callable[[Denoise, Tensor, Tensor, Tensor], Tensor] = heun_step

    def __call__(self, networks: Networks, x: Tensor, path: Tensor, labels: Tensor | None) -> Tensor:
        known = None if getattr(networks.teacher, "num_classes", None) == 0 else labels  # an unconditional teacher
        return walk(lambda x, t: networks.teacher.denoise(x, t, known), x, path, self.step)

    def teacher_evaluations(self, steps: int) -> int:
        return steps * (2 if self.step is heun_step else 1)


@dataclass(frozen=True)
class TargetJump(Walk):
    """One jump of the EMA target, t → u: training without a teacher (CTM §2.5; code: self_learn)."""

    def __call__(self, networks: Networks, x: Tensor, path: Tensor, labels: Tensor | None) -> Tensor:
        return networks.target.jump(x, path[0], path[-1], labels)


@dataclass(frozen=True)
class TargetJumps(Walk):
    """k jumps of the EMA target along the path (code: self_learn_iterative)."""

    def __call__(self, networks: Networks, x: Tensor, path: Tensor, labels: Tensor | None) -> Tensor:
        for t, s in pairwise(path):
            x = networks.target.jump(x, t, s, labels)
        return x
