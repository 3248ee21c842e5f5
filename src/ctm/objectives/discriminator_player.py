"""The discriminator of `Adversarial` as a player, and a watch that tells when it wins."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from ctm.discriminators import built_for
from ctm.objectives.base import Networks, Objective
from ctm.objectives.matching import Matching
from ctm.objectives.player import Lesson, Player, Rhythm

if TYPE_CHECKING:
    from ctm.objectives.adversarial import Adversarial

__all__ = ["DiscriminatorPlayer", "WinningWatch", "fake_maker"]


class DiscriminatorPlayer(Player):
    """Learns to tell what the student made (`Adversarial.judges`) from data.

    Its network stays in eval mode but for `begin`, where its spectral norms make their power iteration: one a step, however
    many passes the step has. Spikes are not judged: a penalty now and then makes the gradient's norm jump. The learning
    rate stays in the whole run: it is the `discriminator_optimizer`'s."""

    name = "discriminator"
    judges_spikes = False
    follows_schedule = False

    def __init__(self, objective: Adversarial) -> None:
        self.objective = objective

    @property
    def learns_from(self) -> tuple[str, ...]:  # type: ignore[override]
        return (self.objective.judges,)

    @property
    def rhythm(self) -> Rhythm:  # type: ignore[override]
        return self.objective.rhythm

    def build(self, networks: Networks) -> nn.Module:
        moves = "translation" in self.objective.augmentation
        return built_for(self.objective.discriminator, networks.student, networks, moves=moves)

    def optimizer(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.RAdam(parameters, lr=2e-3, betas=(0.5, 0.9))

    def begin(self, network: nn.Module) -> None:
        network.train()
        _renew_weights(network)
        network.eval()

    def loss(self, networks: Networks, lesson: Lesson) -> tuple[Tensor, dict[str, Tensor]]:
        fake, penalise = lesson.made[self.objective.judges], self.objective.penalises(lesson.step)
        return self.objective.discriminator_loss(
            networks, lesson.x0, fake, lesson.condition, lesson.draw, penalise=penalise
        )

    def watch(self) -> WinningWatch:
        return WinningWatch()

    def check(self, objectives: Sequence[Objective], index: int) -> None:
        if sum(isinstance(objective.player(), DiscriminatorPlayer) for objective in objectives) > 1:
            raise ValueError("a recipe has at most one Adversarial: give its discriminator several backbones")
        fake_maker(objectives, index)


def fake_maker(objectives: Sequence[Objective], index: int) -> int:
    """The index of the objective whose estimates (or samples, as `Adversarial.judges` says) the discriminator sees: the last that
    makes them before Adversarial in the list. index: of the Adversarial.

    Raises ValueError where there is none, where it starts after the Adversarial, or where its estimate is not in data space."""
    opponent: Any = objectives[index]
    found = [i for i, objective in enumerate(objectives[:index]) if opponent.judges in objective.makes]
    if not found and opponent.judges == "sample":
        raise ValueError(
            "Adversarial judges the samples of DistributionMatching: give a DistributionMatching before it in `objectives`"
        )
    if not found:
        silent = [type(o).__name__ for o in objectives[:index] if getattr(o, "estimate", None) is False]
        raise ValueError(
            "Adversarial judges the estimate of Matching: give a Matching before it in `objectives`"
            + (f", or let {silent[-1]} leave one: estimate: true" if silent else "")
        )
    chosen: Any = objectives[found[-1]]
    if isinstance(chosen, Matching) and chosen.compare == "s" and chosen.s == "drawn":
        raise ValueError(
            "Adversarial judges data, but with compare: s the estimate of Matching stays at s: use compare: data"
        )
    if opponent.start < chosen.start:
        raise ValueError(
            f"Adversarial starts at step {opponent.start}, {type(chosen).__name__}, whose {opponent.judges} it judges, at "
            f"{chosen.start}: let it start no earlier"
        )
    return found[-1]


@torch.no_grad()
def _renew_weights(network: nn.Module) -> None:
    """Compute every parametrized weight once; a spectral norm in training mode makes a power iteration with that."""
    for module in network.modules():
        if is_parametrized(module):
            for name in module.parametrizations:  # type: ignore[union-attr]
                getattr(module, name)


class WinningWatch:
    """Tells when the discriminator has been winning for long: its accuracy's mean over the last `steps` of its steps is above
    `limit`. Told once, and again after it has been below."""

    reads: tuple[str, ...] = ("accuracy", "logit_gap")

    def __init__(self, steps: int = 200, limit: float = 0.95) -> None:
        self.steps, self.limit = steps, limit
        self._recent: list[float] = []
        self._told = False

    def tell(self, *numbers: float) -> str | None:
        """The step's accuracy and logit gap -> a sentence, where it is time for one."""
        accuracy, gap = numbers
        self._recent = [*self._recent[1 - self.steps :], accuracy]
        mean = sum(self._recent) / len(self._recent)
        if len(self._recent) < self.steps:
            return None
        if mean <= self.limit:
            self._told = False
            return None
        if self._told:
            return None
        self._told = True
        return (
            f"the discriminator wins: over its last {self.steps} steps it told {mean:.0%} of data and samples apart (logit gap "
            f"{gap:.2g}), and the student learns little from it. Lower discriminator_optimizer's lr, give it r1_weight, or let "
            "Adversarial start later; see 'Adversarial training' in docs/training.md"
        )
