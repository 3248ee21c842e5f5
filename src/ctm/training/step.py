"""One training step: draw, losses, balance, backward."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ctm.arguments import inside
from ctm.conditions import Condition, dropped
from ctm.objectives import Adversarial, Matching, Networks, Objective, balance
from ctm.objectives.balance import balance_chained

__all__ = [
    "Batch",
    "LossModule",
    "backward",
    "draw_batch",
    "fake_maker",
    "last_layer",
    "rows_of_process",
    "step_generator",
]


@dataclass(frozen=True)
class Batch:
    """What one process needs for one step: x0 (B, …), the condition of its rows, and a draw for each objective, None for those
    that take no part in this step."""

    x0: Tensor
    condition: Condition
    draws: list[Any]


def last_layer(network: nn.Module) -> nn.Module:
    """The network's own word for it, else the last module that holds a weight."""
    named = getattr(network, "last_layer", None)
    if isinstance(named, nn.Module):
        return named
    return [m for m in network.modules() if isinstance(getattr(m, "weight", None), nn.Parameter)][-1]


class LossModule(nn.Module):
    """The student and the objectives as one module, so that a data-parallel wrapper sees each step as one forward call.

    `outputs` holds what the student's last layer returned with gradient in the last forward. sharded: what its network
    returned instead, because FSDP2 gathers the weights for a backward pass that comes through there."""

    def __init__(self, student: Any, objectives: Sequence[Objective], *, sharded: bool = False) -> None:
        super().__init__()
        self.sharded = sharded
        self.student = student
        self.objectives = list(objectives)
        self.outputs: list[Tensor] = []
        self.fake: Tensor | None = None

    @property
    def last_layer(self) -> nn.Module:
        """Of the student's network."""
        return last_layer(self.student.network)

    def _keep(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        if output.requires_grad:
            self.outputs.append(output)

    def active(self, batch: Batch) -> list[int]:
        """Which objectives take part in this batch's step."""
        return [index for index, draw in enumerate(batch.draws) if draw is not None]

    def forward(
        self, batch: Batch, target: Any, teacher: Any, discriminator: Any = None, *, fake_only: bool = False
    ) -> list[Tensor]:
        """The mean of each active objective over the batch, and in `fake` the samples that the discriminator is to judge.

        fake_only: makes just these, without the targets of matching; to be called without gradient."""
        self.outputs.clear()
        with inside():  # the run's data and teacher were checked when it was prepared
            return self._losses(batch, Networks(self.student, target, teacher, discriminator), fake_only)

    def _losses(self, batch: Batch, networks: Networks, fake_only: bool) -> list[Tensor]:
        if fake_only:
            index = fake_maker(self.objectives)
            matching: Any = self.objectives[index]
            self.fake = matching.fake(networks, batch.x0, batch.condition, batch.draws[index]).detach()
            return []
        with self.watching():
            losses = [
                self.objectives[index](networks, batch.x0, batch.condition, batch.draws[index]).mean()
                for index in self.active(batch)
            ]
        self.fake = networks.made["estimate"].detach() if "estimate" in networks.made else None
        return losses

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Keep the outputs meanwhile. The hook is gone afterwards: a copy of the student must not carry
        it, or each of its calls would be kept for good."""
        watched = self.student.network if self.sharded else self.last_layer
        hook = watched.register_forward_hook(self._keep)
        try:
            yield
        finally:
            hook.remove()


def fake_maker(objectives: Sequence[Objective]) -> int:
    """The index of the matching objective whose estimate the adversarial one judges: the last before it.

    Raises ValueError where there is none, where it starts after the adversarial one, or where its estimate is not in data
    space."""
    end = next((i for i, objective in enumerate(objectives) if isinstance(objective, Adversarial)), len(objectives))
    found = [i for i, objective in enumerate(objectives[:end]) if isinstance(objective, Matching)]
    if not found:
        raise ValueError("Adversarial judges the estimate of Matching: give a Matching before it in `objectives`")
    chosen: Any = objectives[found[-1]]
    if chosen.compare == "s" and chosen.s == "drawn":
        raise ValueError(
            "Adversarial judges data, but with compare: s the estimate of Matching stays at s: use compare: data"
        )
    for opponent in objectives[end : end + 1]:
        if isinstance(opponent, Adversarial) and opponent.start < chosen.start:
            raise ValueError(
                f"Adversarial starts at step {opponent.start}, Matching, whose estimate it judges, at {chosen.start}: "
                "let it start no earlier"
            )
    return found[-1]


def step_generator(seed: int, step: int) -> torch.Generator:
    """The generator, on the CPU, of all random numbers of one step, from (seed, step) alone: a resumed run needs no generator's
    state, and processes that draw the whole batch and take their rows agree with one process that takes all."""
    state = np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state) >> 1)


def rows_of_process(total: int, processes: int, process: int, pieces: int = 1) -> list[slice]:
    """The rows of the common batch that a process takes, in the pieces it takes them in.

    The batch is cut into pieces first and each piece among the processes, so that one process and many see the same
    pieces. Every row belongs to one piece of one process. Raises ValueError where total is no multiple of
    processes·pieces: means of unequal parts would not average to the mean of the batch."""
    if total % (processes * pieces):
        raise ValueError(
            f"data.batch_size {total} does not divide among {processes} processes in {pieces} pieces each: "
            f"take a multiple of {processes * pieces}"
        )
    size = total // (processes * pieces)
    starts = [(piece * processes + process) * size for piece in range(pieces)]
    return [slice(start, start + size) for start in starts]


def draw_batch(
    objectives: Sequence[Objective],
    model: Any,
    x0: Tensor,
    condition: Condition,
    *,
    total: int,
    part: slice,
    condition_dropout: float,
    generator: torch.Generator,
    step: int = 0,
) -> Batch:
    """The batch of one process: x0 and condition are its rows, `part` of the `total` that all processes have together."""
    like = x0.new_empty(total, *x0.shape[1:])
    if condition is not None and condition_dropout > 0:
        left_out = torch.rand(total, generator=generator)[part] < condition_dropout
        condition = dropped(condition, left_out)
    draws = [
        objective.draw(model, like, generator).rows(part) if objective.active(step) else None
        for objective in objectives
    ]
    return Batch(x0, condition, draws)


def backward(
    module: LossModule,
    losses: list[Tensor],
    *,
    factors: Sequence[float] | None = None,
    ranges: Sequence[tuple[float, float]] | None = None,
    adaptive: bool = True,
    reduce: Callable[[Tensor], Tensor] = lambda gradient: gradient,
    scale: float = 1.0,
) -> list[Tensor]:
    """`scale` times the gradients of the balanced sum of losses, added to the student's parameters. Returns the adaptive
    weights, which do not depend on the scale.

    factors, ranges, adaptive, reduce: as of `ctm.objectives.balance`; reduce sees unscaled gradients. scale: larger than 1 keeps
    float16 gradients from vanishing, 1/n averages over n pieces of a batch. The losses themselves are scaled, because
    their gradients at the outputs are in the outputs' precision already."""
    weight = module.last_layer.get_parameter("weight")
    options: dict[str, Any] = {"factors": factors, "ranges": ranges, "adaptive": adaptive}
    options["reduce"] = lambda gradient: reduce(gradient / scale)
    losses = [loss * scale for loss in losses]
    if any(objective.chains_student for objective in module.objectives):
        weights, total = balance_chained(losses, weight, **options)
        total.backward()
        return weights
    weights, gradients = balance(losses, module.outputs, weight, **options)
    torch.autograd.backward(module.outputs, gradients)
    return weights
