"""The discriminator's side of a training run: its module, its optimiser, its steps, and a watch over how it does."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from ctm.discriminators import built_for
from ctm.objectives import Adversarial, Networks, Objective
from ctm.training.engine import fitting_optimizer
from ctm.training.reading import read_back
from ctm.training.step import Batch, fake_maker

__all__ = ["Adversary", "Watch", "adversary"]

_LOG = logging.getLogger(__name__)

OptimizerBuilder = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


def _default_optimizer(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.RAdam(parameters, lr=2e-3, betas=(0.5, 0.9))


def adversary(
    objectives: Sequence[Objective],
    networks: Networks,
    accelerator: Accelerator,
    optimizer: OptimizerBuilder | None = None,
) -> Adversary | None:
    """The adversary of a run whose objectives have an `Adversarial`, else None. Its weights are drawn from torch's global
    generator. networks: student and teacher, on their device. optimizer: RAdam as official where None.

    Raises ValueError for more than one Adversarial, one without a Matching before it, or one that stands first."""
    found = [index for index, objective in enumerate(objectives) if isinstance(objective, Adversarial)]
    if not found:
        return None
    if len(found) > 1:
        raise ValueError("a recipe has at most one Adversarial: give its discriminator several backbones")
    fake_maker(objectives)
    return Adversary(objectives, found[0], networks, accelerator, optimizer or _default_optimizer)


class Adversary:
    """The discriminator in training. A step is `begin`, `learn` for each piece of the batch, and `move`.

    The network stays in eval mode but for `begin`, where its spectral norms make their power iteration: one a step, however
    many passes the step has."""

    def __init__(
        self,
        objectives: Sequence[Objective],
        index: int,
        networks: Networks,
        accelerator: Accelerator,
        optimizer: OptimizerBuilder,
    ) -> None:
        objective = objectives[index]
        assert isinstance(objective, Adversarial)
        self.objective, self.index, self.accelerator = objective, index, accelerator
        student = networks.student
        moves = "translation" in objective.augmentation
        module = built_for(objective.discriminator, student, networks, moves=moves)
        self.network: nn.Module = module.to(accelerator.device).eval()
        self.optimizer = fitting_optimizer(optimizer(self.network.parameters()))
        self.watch = Watch()
        self._numbers: list[dict[str, Tensor]] = []

    def begin(self) -> None:
        """Before the pieces of a step."""
        self.network.train()
        _renew_weights(self.network)
        self.network.eval()
        self.optimizer.zero_grad()
        self._numbers = []

    def learn(self, batch: Batch, fake: Tensor, networks: Networks, step: int, *, pieces: int = 1) -> None:
        """Add the gradients of one of the step's pieces. fake (B, …): the samples to tell from the batch's data."""
        loss, numbers = self.objective.discriminator_loss(
            networks, batch.x0, fake, batch.condition, batch.draws[self.index], penalise=self.objective.penalises(step)
        )
        (loss / pieces).backward()
        self._numbers.append(numbers)

    def move(self, allows: Callable[[Tensor, Tensor], bool] = lambda loss, norm: True) -> dict[str, Tensor]:
        """Average the gradients over all processes and move the weights, where `allows` says so of the loss and the gradient's
        norm. Returns the step's numbers, of all processes."""
        gradients = [p.grad for p in self.network.parameters() if p.grad is not None]
        self._average(gradients)
        norm = nn.utils.get_total_norm(gradients)
        names = list(self._numbers[0])
        means = torch.stack([torch.stack([n[name] for n in self._numbers]).mean() for name in names])
        self._average([means])
        numbers = {f"discriminator/{name}": value for name, value in zip(names, means, strict=True)}
        numbers["discriminator/gradient_norm"] = norm
        if not allows(numbers["discriminator/loss"], norm):
            return numbers
        self.optimizer.step()
        sentence = self.watch.tell(*read_back([numbers["discriminator/accuracy"], numbers["discriminator/logit_gap"]]))
        if sentence and self.accelerator.is_main_process:
            _LOG.warning(sentence)
        return numbers

    def _average(self, tensors: Sequence[Tensor]) -> None:
        """Replace each by its mean over processes, in one exchange."""
        if self.accelerator.num_processes == 1:
            return
        flat = self.accelerator.reduce(torch.cat([tensor.flatten() for tensor in tensors]), "mean")
        parts = flat.split([tensor.numel() for tensor in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.reshape_as(tensor))


@torch.no_grad()
def _renew_weights(network: nn.Module) -> None:
    """Compute every parametrized weight once; a spectral norm in training mode makes a power iteration with that."""
    for module in network.modules():
        if is_parametrized(module):
            for name in module.parametrizations:  # type: ignore[union-attr]
                getattr(module, name)


class Watch:
    """Tells when the discriminator has been winning for long: its accuracy's mean over the last `steps` of its steps is above
    `limit`. Told once, and again after it has been below."""

    def __init__(self, steps: int = 200, limit: float = 0.95) -> None:
        self.steps, self.limit = steps, limit
        self._recent: list[float] = []
        self._told = False

    def tell(self, accuracy: float, gap: float) -> str | None:
        """The step's accuracy and logit gap -> a sentence, where it is time for one."""
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
