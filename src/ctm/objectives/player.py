"""Players: networks of an objective's own that learn beside the student, such as a discriminator or a fake score."""

from __future__ import annotations

import copy
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from ctm.conditions import Condition
from ctm.objectives.base import Networks, Objective

__all__ = ["Lesson", "Player", "Rhythm", "Watch", "fixed", "makers", "players_of", "student_learns", "trainable_copy"]

Module = TypeVar("Module", bound=nn.Module)

_NAME = re.compile(r"[a-z][a-z0-9_]*")
_TAKEN = frozenset({"student", "target", "teacher", "ema", "model", "loss", "weight", "last_layer_gradient"})


@dataclass(frozen=True)
class Rhythm:
    """In which steps a player learns, and in which the student does.

    From step `start` on, steps go round in periods. Step n has the place (n − phase) mod period. The player learns at the
    places in `player`, the student at the places in `student`. Before `start` the student learns in every step and the player
    in none. Raises ValueError where a place is outside the period, or where nobody learns.
    """

    start: int = 0
    period: int = 1
    player: tuple[int, ...] = (0,)
    student: tuple[int, ...] = (0,)
    phase: int = 0

    def __post_init__(self) -> None:
        if self.start < 0 or self.period < 1:
            raise ValueError(
                f"start must be at least 0 and period at least 1, got start {self.start} and period {self.period}"
            )
        places = {*self.player, *self.student}
        if places != set(range(self.period)) or not self.player or not self.student:
            raise ValueError(
                f"player and student must name the places 0 … {self.period - 1} of a period, each place at least once between "
                f"them and one at least each, got player {list(self.player)} and student {list(self.student)}"
            )

    @classmethod
    def alternating(cls, start: int = 0) -> Rhythm:
        """Even steps train the student, odd steps the player."""
        return cls(start, period=2, player=(1,), student=(0,))

    @classmethod
    def ahead(cls, steps: int, start: int = 0) -> Rhythm:
        """The player learns in every step, the student in the last of each `steps` steps, counted from `start`."""
        return cls(start, period=steps, player=tuple(range(steps)), student=(steps - 1,), phase=start)

    def player_learns(self, step: int) -> bool:
        """Whether the player learns in this step (from 0)."""
        return step >= self.start and (step - self.phase) % self.period in self.player

    def student_learns(self, step: int) -> bool:
        """Whether this rhythm lets the student learn in this step (from 0)."""
        return step < self.start or (step - self.phase) % self.period in self.student

    def count(self, step: int) -> int:
        """In how many of the steps before this one the player learned."""
        places = [(place + self.phase) % self.period for place in set(self.player)]
        before = [(step - place + self.period - 1) // self.period for place in places]
        skipped = [(self.start - place + self.period - 1) // self.period for place in places]
        return max(0, sum(before) - sum(skipped))

    @property
    def first(self) -> int:
        """The first step in which the player learns."""
        return next(step for step in range(self.start, self.start + self.period) if self.player_learns(step))


@dataclass(frozen=True)
class Lesson:
    """What a player learns from in one piece of a step.

    x0 (B, …): data. condition: of the B samples, or None. made: what objectives made in this step, without gradient, such as
    the "estimate" of `Matching`, (B, …). draw: the random numbers of the player's objective. step: the number of the step, from
    0."""

    x0: Tensor
    condition: Condition
    made: Mapping[str, Tensor]
    draw: Any
    step: int


class Watch(Protocol):
    """Looks at a player's numbers over its steps, and tells a person what is wrong."""

    reads: tuple[str, ...]

    def tell(self, *numbers: float) -> str | None:
        """The numbers `reads` of a step of the player -> a sentence, where it is time for one."""
        ...


class Player(ABC):
    """A network that learns beside the student, by a loss, an optimiser and a rhythm of its own. An objective names its player by
    `Objective.player`; objectives find the network in `Networks.players` under the player's name.

    name: small letters, digits and _. It names the files of checkpoints, the numbers in metrics.jsonl and the guard.
    learns_from: what of `Lesson.made` its loss needs. The objective itself or an objective before it must have the name in its
    `makes`.
    rhythm: when it learns, and when the student does. The student learns in a step where the rhythms of all players let it.
    clip_gradient_norm: larger gradients are scaled down to this norm; None: none are.
    judges_spikes: whether a spike of its gradient's norm is skipped, as the student's is.
    follows_schedule: whether its learning rate rises and falls with the student's (`warmup_steps`, `decay_fraction` of the run).
    """

    name: str
    learns_from: tuple[str, ...] = ()
    rhythm: Rhythm = Rhythm()
    clip_gradient_norm: float | None = None
    judges_spikes: bool = True
    follows_schedule: bool = True

    @abstractmethod
    def build(self, networks: Networks) -> nn.Module:
        """The network before its first step. What is random in it comes from torch's global generator. networks: student, target
        and teacher as they start. `trainable_copy(networks.teacher)` starts from the teacher's weights."""

    @abstractmethod
    def loss(self, networks: Networks, lesson: Lesson) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, a scalar with gradient for the network, and numbers for the log, scalars without gradient, the same names in
        every piece of a step. The loss is logged as "loss" where the numbers have no other under that name."""

    @abstractmethod
    def optimizer(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """The optimiser of the network. Its learning rate is the highest of the run where the player follows the schedule."""

    def begin(self, network: nn.Module) -> None:
        """Before the pieces of a step in which the network learns: puts it into the mode in which it learns, train or eval. While
        the student learns through it, it is in eval mode."""
        network.train()

    def watch(self) -> Watch | None:
        """Who looks at the numbers of one run."""
        return None

    def check(self, objectives: Sequence[Objective], index: int) -> None:  # noqa: B027
        """Raises ValueError where the other objectives do not fit. index: of the player's objective in the list."""


def players_of(objectives: Sequence[Objective]) -> dict[int, Player]:
    """The players of objectives, by the index of the objective. Raises ValueError for names that cannot be or are given twice,
    for rhythms that never let the student learn, and where what a player learns from is not there in its first step."""
    found = {index: player for index, objective in enumerate(objectives) if (player := objective.player()) is not None}
    for index, player in found.items():
        player.check(objectives, index)
    owners: dict[str, str] = {}
    for index, player in found.items():
        kind = type(objectives[index]).__name__
        if not _NAME.fullmatch(player.name) or player.name in _TAKEN:
            raise ValueError(
                f"the player of {kind} is called {player.name!r}: use small letters, digits and _, and none of "
                f"{', '.join(sorted(_TAKEN))}"
            )
        if player.name in owners:
            raise ValueError(
                f"{owners[player.name]} and {kind} both train a player of the name {player.name!r}: files, guards and numbers "
                "would be mixed up; give one of them another name"
            )
        owners[player.name] = kind
        for at in (index, *makers(objectives, index)):
            if not objectives[at].active(player.rhythm.first):
                raise ValueError(
                    f"the player {player.name} of {kind} first learns in step {player.rhythm.first}, where "
                    f"{type(objectives[at]).__name__} takes no part yet: let its rhythm start later"
                )
    _check_rhythms(list(found.values()))
    return found


def _check_rhythms(players: Sequence[Player]) -> None:
    """Raises ValueError where no step lets the student learn once all players take part."""
    start = max((player.rhythm.start for player in players), default=0)
    common = math.lcm(*(player.rhythm.period for player in players))
    if not any(all(p.rhythm.student_learns(step) for p in players) for step in range(start, start + common)):
        raise ValueError(
            f"the rhythms of the players {', '.join(player.name for player in players)} together leave no step in which the "
            "student learns: change the phase or the period of one of them"
        )


def makers(objectives: Sequence[Objective], index: int) -> list[int]:
    """The indices of the objectives that make what the player of objective `index` learns from: for each name the last up to that
    objective. Raises ValueError where there is none."""
    player, found = objectives[index].player(), set()
    for name in player.learns_from if player is not None else ():
        making = [at for at in range(index + 1) if name in objectives[at].makes]
        if not making:
            raise ValueError(
                f"the player of {type(objectives[index]).__name__} learns from the {name!r} of a step, which neither it nor an "
                "objective before it makes: give the objective that does before it in `objectives`"
            )
        found.add(making[-1])
    return sorted(found)


def student_learns(objectives: Sequence[Objective], step: int) -> bool:
    """Whether the student learns in this step (from 0): where the rhythms of all players let it."""
    players = [objective.player() for objective in objectives]
    return all(player.rhythm.student_learns(step) for player in players if player is not None)


def trainable_copy(model: Module) -> Module:
    """A copy of a model whose weights learn, in eval mode: a player that starts from the teacher's weights."""
    return copy.deepcopy(model).requires_grad_(True).eval()


@contextmanager
def fixed(network: nn.Module) -> Iterator[None]:
    """Weights without gradient meanwhile, while the student learns through a player."""
    learning = [parameter for parameter in network.parameters() if parameter.requires_grad]
    for parameter in learning:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)
