"""The guards' verdicts on the steps of a run, and the search for what went wrong in a skipped one."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ctm.training.diagnosis import first_bad_value
from ctm.training.guard import StepGuard
from ctm.training.reading import read_back
from ctm.training.recipe import Recipe
from ctm.training.step import step_generator

__all__ = ["Verdict", "step_guards"]

_LOG = logging.getLogger(__name__)


def step_guards(recipe: Recipe, adversarial: bool) -> dict[str, StepGuard]:
    """A guard for each optimiser. The discriminator's knows no spikes: penalties come now and then and make its norm jump."""
    guards = {"student": StepGuard(recipe.skip_limit, recipe.spike_factor)}
    return guards | ({"discriminator": StepGuard(recipe.skip_limit, None)} if adversarial else {})


class Verdict:
    """Whether step `step` of a run may change weights. For the first of a row of skipped steps, finds out and warns where it
    went wrong; all processes come to the same verdict.

    batches: makes the step's batches again, for that search."""

    def __init__(self, run: Any, step: int, batches: Callable[[], list[Any]]) -> None:
        self.run, self.step, self.batches = run, step, batches

    def on_student(self, numbers: Mapping[str, float | Tensor], norm: Tensor) -> bool:
        """By the step's losses and its gradient. A gradient that overflowed at a scale of losses above 1 is the scaler's."""
        guard, optimizer = self.run.guards["student"], self.run.optimizer
        named = {name.removeprefix("loss/"): value for name, value in numbers.items() if name.startswith("loss/")}
        norm = self.run.accelerator.reduce(norm.detach(), "mean")
        *values, measured = read_back([*named.values(), norm])
        losses = dict(zip(named, values, strict=True))
        if optimizer.scale > 1 and not math.isfinite(measured) and all(map(math.isfinite, losses.values())):
            return True
        return guard.allows(self.step + 1, losses, measured) or self._report(guard)

    def on_discriminator(self, loss: Tensor, norm: Tensor) -> bool:
        """By the discriminator's own loss and gradient."""
        guard = self.run.guards["discriminator"]
        measured_loss, measured_norm = read_back([loss, norm])
        return guard.allows(self.step + 1, {"the discriminator": measured_loss}, measured_norm) or self._report(guard)

    def _report(self, guard: StepGuard) -> bool:
        if guard.in_a_row > 1:
            return False
        if not guard.spiked:
            guard.found = self._search()
        if self.run.accelerator.is_main_process:
            _LOG.warning("skipped %s", guard.words())
        return False

    def _search(self) -> str:
        run = self.run
        opponent = run.adversary and run.adversary.network
        models = {"student": run.student, "target": run.target, "teacher": run.teacher, "discriminator": opponent}
        seed = step_generator(run.recipe.seed, self.step).initial_seed()

        def forward(target: Any, teacher: Any) -> None:
            for batch in self.batches():
                run.module(batch, target, teacher, opponent)

        with torch.compiler.set_stance("force_eager"):  # hooks inside compiled networks would not be called
            return first_bad_value(forward, models, run.accelerator, seed + run.accelerator.process_index)
