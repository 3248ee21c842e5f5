"""The guards' verdicts on the steps of a run, and the search for what went wrong in a skipped one."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ctm.models.protocol import Denoiser, Diffusion
from ctm.objectives import Networks
from ctm.training.diagnosis import first_bad_value
from ctm.training.guard import StepGuard
from ctm.training.players import PlayerInTraining
from ctm.training.reading import read_back
from ctm.training.recipe import Recipe
from ctm.training.step import Batch, step_generator

if TYPE_CHECKING:
    from ctm.training.assembly import Run

__all__ = ["Verdict", "step_guards"]

_LOG = logging.getLogger(__name__)


def step_guards(recipe: Recipe, players: Mapping[str, PlayerInTraining]) -> dict[str, StepGuard]:
    """A guard for each optimiser. A player whose norm may jump, as by a penalty now and then, is judged without spikes."""
    guards = {"student": StepGuard(recipe.skip_limit, recipe.spike_factor)}
    factors = {name: recipe.spike_factor if held.player.judges_spikes else None for name, held in players.items()}
    return guards | {name: StepGuard(recipe.skip_limit, factor) for name, factor in factors.items()}


class Verdict:
    """Whether step `step` of a run may change weights. For the first of a row of skipped steps, finds out and warns where it
    went wrong; all processes come to the same verdict.

    batches: makes the step's batches again, for that search."""

    def __init__(self, run: Run, step: int, batches: Callable[[], list[Batch]]) -> None:
        self.run, self.step, self.batches = run, step, batches

    def on_student(self, numbers: Mapping[str, float | Tensor], norm: Tensor) -> bool:
        """By the step's losses and its gradient. A gradient that overflowed at a scale of losses above 1 is the scaler's."""
        optimizer = self.run.optimizer
        named = {name.removeprefix("loss/"): value for name, value in numbers.items() if name.startswith("loss/")}
        norm = self.run.accelerator.reduce(norm.detach(), "mean")
        *values, measured = read_back([*named.values(), norm])
        losses = dict(zip(named, values, strict=True))
        return self._allows("student", optimizer.scale, losses, measured)

    def on_player(self, player: PlayerInTraining, loss: Tensor, norm: Tensor) -> bool:
        """By the player's own loss and gradient."""
        measured_loss, measured_norm = read_back([loss, norm])
        losses = {f"the {player.name}": measured_loss}
        return self._allows(player.name, player.optimizer.scale, losses, measured_norm)

    def _allows(self, learner: str, scale: float, losses: Mapping[str, float], norm: float) -> bool:
        if scale > 1 and not math.isfinite(norm) and all(map(math.isfinite, losses.values())):
            return True
        guard = self.run.guards[learner]
        return guard.allows(self.step + 1, losses, norm) or self._report(guard, learner)

    def _report(self, guard: StepGuard, learner: str) -> bool:
        if guard.in_a_row > 1:
            return False
        if not guard.spiked:
            guard.found = self._search(learner)
        if self.run.accelerator.is_main_process:
            _LOG.warning("skipped %s", guard.words())
        return False

    def _search(self, learner: str) -> str:
        run = self.run
        models = {"student": run.student, "target": run.target, "teacher": run.teacher, **run.player_networks}
        seed = step_generator(run.recipe.seed, self.step).initial_seed()

        def forward(target: Diffusion | None, teacher: Denoiser | None) -> None:
            for batch in self.batches():
                run.module(batch, target, teacher, run.player_networks)
                networks = Networks(run.student, target, teacher, run.player_networks)
                for player in (player for player in run.players.values() if player.learns(self.step)):
                    with torch.enable_grad():  # a loss may have a penalty on a gradient
                        player.loss(batch, run.module.made[player.index], networks, self.step)

        with torch.compiler.set_stance("force_eager"):  # hooks inside compiled networks would not be called
            return first_bad_value(forward, models, run.accelerator, seed + run.accelerator.process_index, learner)
