"""One training step: draw, losses, balance, backward."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ctm.arguments import inside
from ctm.conditions import Condition, dropped
from ctm.models import AnyModel
from ctm.models.protocol import Denoiser, Diffusion
from ctm.objectives import Networks, Objective, balance
from ctm.objectives.balance import balance_chained
from ctm.objectives.player import makers

__all__ = [
    "Batch",
    "LossModule",
    "backward",
    "draw_batch",
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

    `chained`: whether an objective's gradient goes through the student's last layer more than once. Else `outputs` holds what
    that layer returned with gradient in the last forward. sharded: what its network
    returned instead, because FSDP2 gathers the weights for a backward pass that comes through there. `made` holds, by the index
    of each objective with a player, what the last forward made for the player, without gradient. Raises ValueError as
    `ctm.objectives.player.makers`."""

    def __init__(self, student: AnyModel, objectives: Sequence[Objective], *, sharded: bool = False) -> None:
        super().__init__()
        self.sharded = sharded
        self.student = student
        self.objectives = list(objectives)
        self.chained = any(objective.chains_student for objective in self.objectives)
        self.outputs: list[Tensor] = []
        self.makers = {index: makers(objectives, index) for index, o in enumerate(objectives) if o.player() is not None}
        self.made: dict[int, dict[str, Tensor]] = {}

    @property
    def last_layer(self) -> nn.Module:
        """Of the student's network."""
        return last_layer(self.student.network)

    def _keep(self, module: nn.Module, inputs: object, output: Tensor) -> None:
        if output.requires_grad and not self.chained:
            self.outputs.append(output)

    def active(self, batch: Batch) -> list[int]:
        """Which objectives take part in this batch's step."""
        return [index for index, draw in enumerate(batch.draws) if draw is not None]

    def forward(
        self,
        batch: Batch,
        target: Diffusion | None,
        teacher: Denoiser | None,
        players: Mapping[str, nn.Module] | None = None,
        *,
        make_for: Collection[int] | None = None,
    ) -> list[Tensor]:
        """The mean of each active objective over the batch, and in `made` what players learn from.

        players: the networks of players by name. make_for: indices of objectives with a player: makes just what these players
        learn from, without losses; to be called without gradient."""
        self.outputs.clear()
        self.made = {}
        networks = Networks(self.student, target, teacher, players or {})
        with inside():  # the run's data and teacher were checked when it was prepared
            return self._losses(batch, networks) if make_for is None else self._make(batch, networks, make_for)

    def _losses(self, batch: Batch, networks: Networks) -> list[Tensor]:
        losses = []
        with self.watching():
            for index in self.active(batch):
                losses.append(self.objectives[index](networks, batch.x0, batch.condition, batch.draws[index]).mean())
                self._note(index, networks)
        return losses

    def _make(self, batch: Batch, networks: Networks, owners: Collection[int]) -> list[Tensor]:
        making = {maker for owner in owners for maker in self.makers[owner]}
        for index in sorted({*making, *owners}):
            if index in making:
                self.objectives[index].make(networks, batch.x0, batch.condition, batch.draws[index])
            if index in owners:
                self._note(index, networks)
        return []

    def _note(self, index: int, networks: Networks) -> None:
        """Keep what objectives have made so far, where objective `index` has a player."""
        if index in self.makers:
            self.made[index] = {name: value.detach() for name, value in networks.made.items()}

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
    model: Diffusion,
    x0: Tensor,
    condition: Condition,
    *,
    total: int,
    part: slice,
    condition_dropout: float | Mapping[str, float],
    generator: torch.Generator,
    step: int = 0,
) -> Batch:
    """The batch of one process: x0 and condition are its rows, `part` of the `total` that all processes have together.

    condition_dropout: the share of rows without a condition; or a share for each of some names, which are drawn apart."""
    like = x0.new_empty(total, *x0.shape[1:])
    if isinstance(condition_dropout, Mapping):
        apart: list[tuple[float, list[str] | None]] = [
            (share, [name]) for name, share in sorted(condition_dropout.items())
        ]
    else:
        apart = [(condition_dropout, None)]
    for share, names in apart:
        if condition is not None and share > 0:
            condition = dropped(condition, torch.rand(total, generator=generator)[part] < share, names)
    draws = [
        objective.draw_at(step, model, like, generator).rows(part) if objective.active(step) else None
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
    if module.chained:
        weights, total = balance_chained(losses, weight, **options)
        total.backward()
        return weights
    weights, gradients = balance(losses, module.outputs, weight, **options)
    torch.autograd.backward(module.outputs, gradients)
    return weights
