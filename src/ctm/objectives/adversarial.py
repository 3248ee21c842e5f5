"""The adversarial loss of CTM (arXiv 2310.02279): a discriminator tells data from the estimates that matching makes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from ctm.conditions import Condition, repeat
from ctm.discriminators import Discriminator, ProjectedDiscriminator
from ctm.models.protocol import Diffusion
from ctm.objectives import augmentation as diffaugment
from ctm.objectives.adversarial_losses import generator_rows, hinge_discriminator, log_discriminator, mean_logits
from ctm.objectives.augmentation import POLICY, Augmentation, AugmentationDraw
from ctm.objectives.base import Draw, Networks, Objective
from ctm.objectives.discriminator_player import DiscriminatorPlayer
from ctm.objectives.player import Rhythm, fixed

__all__ = ["Adversarial", "AdversarialDraw", "gradient_penalty"]

_DISCRIMINATOR = {"hinge": hinge_discriminator, "log": log_discriminator}


@dataclass(frozen=True)
class AdversarialDraw(Draw):
    """The augmentations of one step, of the data and of the fakes; None where nothing is augmented."""

    real: AugmentationDraw | None
    fake: AugmentationDraw | None

    def rows(self, part: slice) -> AdversarialDraw:
        return AdversarialDraw(*(None if kept is None else kept.rows(part) for kept in (self.real, self.fake)))


@dataclass(frozen=True)
class Adversarial(Objective):
    """The generator's loss on the estimate of `Matching`, which must stand before it, and the discriminator's on that and data.

    judges: "estimate", of `Matching`, or of another way to teach a jump with `estimate: true`; or "sample", the one-jump samples
    of `DistributionMatching`. The last before it in the list is taken.
    discriminator: `ctm.discriminators.ProjectedDiscriminator` for images, `MLPDiscriminator` for vectors. loss: "hinge"
    (official code) or "log" (paper). augmentation: of colour, translation and cutout, DiffAugment's, what is done to all the
    discriminator sees. start: first step with it. alternate: from there even steps train the student with all losses and odd
    ones the discriminator alone (official code); false trains both in every step. r1_weight: γ of the penalty γ/2·|∇_x D|² on
    data (arXiv 1801.04406), taken every r1_every steps of the discriminator, that many times as strong. Its adaptive weight
    is kept in [0.01, 10]. Raises ValueError for settings out of range.
    """

    weight_range = (0.01, 10.0)

    discriminator: Discriminator = field(default_factory=ProjectedDiscriminator)
    judges: Literal["estimate", "sample"] = "estimate"
    loss: Literal["hinge", "log"] = "hinge"
    augmentation: tuple[Augmentation, ...] = POLICY
    start: int = 0
    alternate: bool = True
    r1_weight: float = 0.0
    r1_every: int = 16

    def __post_init__(self) -> None:
        if self.loss not in _DISCRIMINATOR:
            raise ValueError(f"loss must be hinge or log, got {self.loss!r}")
        if self.judges not in ("estimate", "sample"):
            raise ValueError(f"judges must be estimate or sample, got {self.judges!r}")
        unknown = set(self.augmentation) - set(POLICY)
        if unknown:
            raise ValueError(f"augmentation must be some of {', '.join(POLICY)}, got {', '.join(sorted(unknown))}")
        if self.start < 0 or self.r1_weight < 0 or self.r1_every < 1:
            raise ValueError(
                "start and r1_weight must be at least 0 and r1_every at least 1, "
                f"got {self.start}, {self.r1_weight} and {self.r1_every}"
            )

    def active(self, step: int) -> bool:
        return step >= self.start

    @property
    def rhythm(self) -> Rhythm:
        """When the discriminator learns, and when the student does."""
        return Rhythm.alternating(self.start) if self.alternate else Rhythm(self.start)

    def player(self) -> DiscriminatorPlayer:
        return DiscriminatorPlayer(self)

    def trains_student(self, step: int) -> bool:
        """Whether the student learns in this step (from 0), from whatever losses are active."""
        return self.rhythm.student_learns(step)

    def trains_discriminator(self, step: int) -> bool:
        """Whether the discriminator learns in this step."""
        return self.rhythm.player_learns(step)

    def penalises(self, step: int) -> bool:
        """Whether a step of the discriminator has the gradient penalty."""
        return self.r1_weight > 0 and self.rhythm.count(step) % self.r1_every == 0

    def draw(self, model: Diffusion, like: Tensor, generator: torch.Generator) -> AdversarialDraw:
        """The augmentations of a batch like `like` (B, …). Raises ValueError where it is to be augmented and is no images."""
        if not self.augmentation:
            return AdversarialDraw(None, None)
        if like.ndim != 4:
            raise ValueError(
                f"DiffAugment is for images (C, H, W), the data have shape {tuple(like.shape[1:])}: set augmentation to []"
            )
        return AdversarialDraw(diffaugment.draw(like, generator=generator), diffaugment.draw(like, generator=generator))

    def __call__(self, networks: Networks, x0: Tensor, condition: Condition, draw: AdversarialDraw) -> Tensor:
        """The generator's loss of each estimate -> (B,). No gradient is kept for the discriminator."""
        if self.judges not in networks.made:
            maker = "Matching" if self.judges == "estimate" else "DistributionMatching"
            raise ValueError(
                f"Adversarial judges the {self.judges} of {maker}: give a {maker} before it in `objectives`"
            )
        discriminator = networks.player("discriminator")
        with fixed(discriminator):
            logits = discriminator(self._seen(networks.made[self.judges], draw.fake), condition, networks)
        return generator_rows(logits, self.loss)

    def discriminator_loss(
        self,
        networks: Networks,
        x0: Tensor,
        fake: Tensor,
        condition: Condition,
        draw: AdversarialDraw,
        *,
        penalise: bool = False,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The discriminator's loss on data x0 and fakes (B, …), both with the batch's condition, and numbers that tell how it
        does: the mean logit of each, their gap, and the share of samples told rightly (mean logit above 0 for data).

        Data and fakes are seen in one pass. penalise: adds the gradient penalty, which sees the data once more."""
        discriminator = networks.player("discriminator")
        both = torch.cat([self._seen(x0, draw.real), self._seen(fake.detach(), draw.fake)])
        twice = repeat(condition, 2)
        logits = discriminator(both, twice, networks)
        real, fakes = ([entry.chunk(2)[half] for entry in logits] for half in (0, 1))
        loss = _DISCRIMINATOR[self.loss](real, fakes)
        for_real, for_fake = mean_logits(real).detach(), mean_logits(fakes).detach()
        numbers = {
            "logit_real": for_real.mean(),
            "logit_fake": for_fake.mean(),
            "logit_gap": for_real.mean() - for_fake.mean(),
            "accuracy": ((for_real > 0).float().mean() + (for_fake < 0).float().mean()) / 2,
            "loss": loss.detach(),
        }
        if penalise:
            penalty = gradient_penalty(lambda x: discriminator(self._seen(x, draw.real), condition, networks), x0)
            numbers["r1"] = penalty.detach()
            loss = loss + self.r1_every * self.r1_weight / 2 * penalty
        return loss, numbers

    def _seen(self, x: Tensor, random: AugmentationDraw | None) -> Tensor:
        return x if random is None else diffaugment.augment(x, random, policy=self.augmentation)


def gradient_penalty(discriminator: Callable[[Tensor], list[Tensor]], x: Tensor) -> Tensor:
    """mean |∇_x D(x)|² (R1, arXiv 1801.04406, eq. 9), D a sample's mean logit over all heads. discriminator: x -> logits."""
    x = x.detach().requires_grad_()
    total = mean_logits(discriminator(x)).sum()
    (gradient,) = torch.autograd.grad(total, x, create_graph=True)
    return gradient.square().flatten(1).sum(dim=1).mean()
