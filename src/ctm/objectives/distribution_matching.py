"""Distribution matching (DMD2, arXiv 2405.14867; SiD, 2404.04057): the student's samples, as a whole, get the teacher's score."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Literal, cast, get_args

import torch
from torch import Tensor, nn

from ctm.conditions import Condition
from ctm.models.protocol import Denoiser, Diffusion, denoiser_of, jumper, taken_by
from ctm.noise import lognormal, match_dims, normal_like
from ctm.objectives.base import Draw, Networks, Objective
from ctm.objectives.denoising import DenoisingDraw, DenoisingScoreMatching
from ctm.objectives.divergences import Divergence, ratio_weight
from ctm.objectives.fake_score import NAME, FakeScore, ScoreAndRatio
from ctm.objectives.player import fixed
from ctm.objectives.ways import check_choice

__all__ = ["DistributionDraw", "DistributionMatching", "FakeScore"]

Loss = Literal["dmd", "sid"]


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

    loss: "dmd", the above, or "sid", score identity distillation's (SiD, arXiv 2404.04057),

        (D_real − D_fake)·(D_real − y − alpha·(D_real − D_fake))/c    at y_σ, the mean over coordinates

    whose gradient goes through both denoisers and leads down the mean square of the scores' difference, the Fisher divergence.
    alpha: 1 is that paper's plain form, 1.2 its best.
    divergence: of "dmd". "reverse_kl", or "forward_kl", "jensen_shannon" or "hellinger", which weigh each sample by a function
    of the ratio of densities r at y_σ (f-distill, arXiv 2502.15681, `ctm.objectives.divergences`). The fake score then learns r
    too, from what its network encodes.

    D_fake is a `Player`, "fake_score": a copy of the teacher that learns by `DenoisingScoreMatching` on the student's samples,
    fake_steps steps for each of the student (5 in DMD2, 1 in SiD), by Adam with rate fake_learning_rate. levels: how σ is
    drawn, as of `DenoisingScoreMatching`, for both; brought into the teacher's range. normalise: whether there is a division by
    c. start: the first step with it. The condition of the batch is the samples'. Raises ValueError for settings out of range.
    """

    needs_teacher = True
    makes = ("sample",)

    levels: Callable[..., Tensor] = lognormal
    fake_steps: int = 5
    fake_learning_rate: float = 1e-3
    normalise: bool = True
    loss: Loss = "dmd"
    alpha: float = 1.0
    divergence: Divergence = "reverse_kl"
    start: int = 0
    denoising: DenoisingScoreMatching = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.fake_steps < 1 or self.start < 0:
            raise ValueError(
                f"fake_steps must be at least 1 and start at least 0, got {self.fake_steps} and {self.start}"
            )
        if not 0 < self.fake_learning_rate < math.inf:
            raise ValueError(f"fake_learning_rate must be above 0 and finite, got {self.fake_learning_rate}")
        check_choice("loss", self.loss, get_args(Loss))
        check_choice("divergence", self.divergence, get_args(Divergence))
        if not math.isfinite(self.alpha):
            raise ValueError(f"alpha must be finite, got {self.alpha}")
        if self.loss == "sid" and self.weighs:
            raise ValueError(
                f"loss sid is a divergence of its own: leave divergence at reverse_kl, got {self.divergence}"
            )
        object.__setattr__(self, "denoising", DenoisingScoreMatching(levels=self.levels))

    @property
    def weighs(self) -> bool:
        """Whether samples are weighed by the ratio of densities."""
        return self.divergence != "reverse_kl"

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
        if self.loss == "sid":
            return self._identity(networks, sample, condition, draw)
        with torch.no_grad():
            target = sample - self.direction(networks, sample, condition, draw)
        return (sample - target).square().flatten(1).mean(1) / 2

    def direction(self, networks: Networks, sample: Tensor, condition: Condition, draw: DistributionDraw) -> Tensor:
        """h of the samples, like them, with the weights of the divergence."""
        real, fake, noised = _both(networks, sample, condition, draw)
        found = (fake - real) / self._scale(sample, real)
        if not self.weighs:
            return found
        ratio = cast(ScoreAndRatio, networks.player(NAME)).log_ratio(noised, draw.sigma, condition)
        return match_dims(ratio_weight(self.divergence, ratio), sample) * found

    def _identity(self, networks: Networks, sample: Tensor, condition: Condition, draw: DistributionDraw) -> Tensor:
        """SiD's losses (B,). No gradient is kept for teacher and fake score."""
        with _fixed(networks.teacher, networks.player(NAME)):
            real, fake, _ = _both(networks, sample, condition, draw)
        apart = real - fake
        found = apart * (real - sample - self.alpha * apart) / self._scale(sample.detach(), real.detach())
        return found.flatten(1).mean(1)

    def _scale(self, sample: Tensor, real: Tensor) -> Tensor:
        """c, for each sample, ready to divide what is like them; 1 where nothing is divided."""
        if not self.normalise:
            return match_dims(torch.ones_like(sample.flatten(1)[:, 0]), sample)
        scale = (sample - real).abs().flatten(1).mean(1)
        return match_dims(scale.clamp(min=torch.finfo(scale.dtype).tiny), sample)

    def teacher_evaluations(self, draw: DistributionDraw) -> int:
        return 1

    def check(self, student: Diffusion, teacher: Denoiser | None) -> None:
        """Raises ValueError for a teacher that cannot be copied and trained as the fake score."""
        if teacher is not None and not (isinstance(teacher, nn.Module) and any(True for _ in teacher.parameters())):
            raise ValueError(
                f"DistributionMatching copies the teacher for its fake score, and this {type(teacher).__name__} has no weights "
                "to train: give a network as the teacher"
            )


def _both(
    networks: Networks, sample: Tensor, condition: Condition, draw: DistributionDraw
) -> tuple[Tensor, Tensor, Tensor]:
    """The teacher's and the fake score's denoised images of the noised samples, and these."""
    noised = sample + match_dims(draw.sigma, sample) * draw.noise
    real, fake = (
        _denoised(model, noised, draw.sigma, condition) for model in (networks.teacher, networks.player(NAME))
    )
    return real, fake, noised


def _denoised(model: object, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
    return denoiser_of(model, taken_by(model, condition))(x, t)


@contextmanager
def _fixed(*models: object) -> Iterator[None]:
    """The weights of the models that have any without gradient meanwhile."""
    with ExitStack() as stack:
        for model in models:
            if isinstance(model, nn.Module):
                stack.enter_context(fixed(model))
        yield
