"""Distribution matching (DMD2, arXiv 2405.14867): the student's samples, as a whole, get the teacher's score."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor, nn

from ctm.conditions import Condition
from ctm.models.protocol import Denoiser, Diffusion, denoiser_of, jumper, taken_by
from ctm.noise import lognormal, match_dims, normal_like
from ctm.objectives.base import Draw, Networks, Objective
from ctm.objectives.denoising import DenoisingDraw, DenoisingScoreMatching
from ctm.objectives.player import Lesson, Player, Rhythm, trainable_copy

__all__ = ["DistributionDraw", "DistributionMatching", "FakeScore"]

_NAME = "fake_score"


@dataclass(frozen=True)
class DistributionDraw(Draw):
    """The random numbers of one step: start (B, …), standard normal, that the samples come from; sigma (B,) and noise (B, …),
    with which they are noised for the student's loss; and the numbers of the fake score's own loss."""

    start: Tensor
    sigma: Tensor
    noise: Tensor
    fake: DenoisingDraw

    def rows(self, part: slice) -> DistributionDraw:
        return DistributionDraw(self.start[part], self.sigma[part], self.noise[part], self.fake.rows(part))


@dataclass(frozen=True)
class DistributionMatching(Objective):
    """½·|y − stopgrad(y − h)|², the mean over coordinates, for the student's sample y = G(σ_max·ε, σ_max, σ_min), with

        h = (D_fake(y_σ, σ) − D_real(y_σ, σ))/c,   y_σ = y + σ·ε′,   c = mean over coordinates of |y − D_real(y_σ, σ)|

    (DMD2, arXiv 2405.14867; DMD, 2311.18828, for c). D_real is the teacher's denoiser, D_fake the denoiser of the student's own
    samples, so D_fake − D_real is σ² times the difference of the scores, and the gradient leads down the KL divergence from
    student to teacher of noised samples. It is zero in the mean just where both distributions are the same. It does not say which
    noise leads to which sample, so it stands beside an objective that does, or alone for one-step generators.

    D_fake is a `Player`, "fake_score": a copy of the teacher that learns by `DenoisingScoreMatching` on the student's samples,
    fake_steps steps for each of the student (5 in DMD2), by Adam with rate fake_learning_rate. levels: how σ is drawn, as of
    `DenoisingScoreMatching`, for both; brought into the teacher's range. normalise: whether h is divided by c. start: the
    first step with it. The condition of the batch is the samples'. Raises ValueError for settings out of range.
    """

    needs_teacher = True
    makes = ("sample",)

    levels: Callable[..., Tensor] = lognormal
    fake_steps: int = 5
    fake_learning_rate: float = 1e-3
    normalise: bool = True
    start: int = 0
    denoising: DenoisingScoreMatching = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.fake_steps < 1 or self.start < 0:
            raise ValueError(
                f"fake_steps must be at least 1 and start at least 0, got {self.fake_steps} and {self.start}"
            )
        if not 0 < self.fake_learning_rate < math.inf:
            raise ValueError(f"fake_learning_rate must be above 0 and finite, got {self.fake_learning_rate}")
        object.__setattr__(self, "denoising", DenoisingScoreMatching(levels=self.levels))

    def active(self, step: int) -> bool:
        return step >= self.start

    def player(self) -> FakeScore:
        return FakeScore(self)

    def draw(self, model: Diffusion, like: Tensor, generator: torch.Generator) -> DistributionDraw:
        """The random numbers for a batch like `like` (B, …)."""
        real, fake = (self.denoising.draw(model, like, generator) for _ in range(2))
        low, high = model.sigma_min, model.sigma_max
        fake = DenoisingDraw(fake.sigma.clamp(low, high), fake.noise)
        return DistributionDraw(normal_like(like, generator), real.sigma.clamp(low, high), real.noise, fake)

    def make(self, networks: Networks, x0: Tensor, condition: Condition, draw: DistributionDraw) -> None:
        student = networks.student
        top = torch.full_like(draw.sigma, student.sigma_max)
        end = torch.full_like(top, student.sigma_min)
        networks.made["sample"] = jumper(student).jump(student.sigma_max * draw.start, top, end, condition)

    def __call__(self, networks: Networks, x0: Tensor, condition: Condition, draw: DistributionDraw) -> Tensor:
        """x0 (B, …) is not used but for its size -> (B,)."""
        self.make(networks, x0, condition, draw)
        sample = networks.made["sample"]
        with torch.no_grad():
            target = sample - self.direction(networks, sample, condition, draw)
        return (sample - target).square().flatten(1).mean(1) / 2

    def direction(self, networks: Networks, sample: Tensor, condition: Condition, draw: DistributionDraw) -> Tensor:
        """h of the samples, like them."""
        noised = sample + match_dims(draw.sigma, sample) * draw.noise
        real, fake = (
            _denoised(model, noised, draw.sigma, condition) for model in (networks.teacher, networks.player(_NAME))
        )
        if not self.normalise:
            return fake - real
        scale = (sample - real).abs().flatten(1).mean(1)
        return (fake - real) / match_dims(scale.clamp(min=torch.finfo(scale.dtype).tiny), sample)

    def teacher_evaluations(self, draw: DistributionDraw) -> int:
        return 1

    def check(self, student: Diffusion, teacher: Denoiser | None) -> None:
        """Raises ValueError for a teacher that cannot be copied and trained as the fake score."""
        if teacher is not None and not (isinstance(teacher, nn.Module) and any(True for _ in teacher.parameters())):
            raise ValueError(
                f"DistributionMatching copies the teacher for its fake score, and this {type(teacher).__name__} has no weights "
                "to train: give a network as the teacher"
            )


def _denoised(model: object, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
    return denoiser_of(model, taken_by(model, condition))(x, t)


class FakeScore(Player):
    """The denoiser of the student's samples."""

    name = _NAME
    learns_from = ("sample",)

    def __init__(self, objective: DistributionMatching) -> None:
        self.objective = objective

    @property
    def rhythm(self) -> Rhythm:  # type: ignore[override]
        return Rhythm.ahead(self.objective.fake_steps, self.objective.start)

    def build(self, networks: Networks) -> nn.Module:
        teacher = networks.teacher
        if not isinstance(teacher, nn.Module):
            raise ValueError(
                "DistributionMatching copies the teacher for its fake score: give a network as the teacher"
            )
        return trainable_copy(teacher)

    def optimizer(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, lr=self.objective.fake_learning_rate)

    def loss(self, networks: Networks, lesson: Lesson) -> tuple[Tensor, dict[str, Tensor]]:
        fake = cast(Diffusion, networks.player(self.name))
        condition = taken_by(fake, lesson.condition)
        losses = self.objective.denoising(Networks(fake), lesson.made["sample"], condition, lesson.draw.fake)
        return losses.mean(), {}
