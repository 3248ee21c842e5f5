"""Which steps may change the weights: none whose loss or gradient is not finite (nan or inf), or whose gradient is a spike."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["StepGuard", "TrainingDiverged", "check_weights"]

_WINDOW, _FIRST = 100, 20


class TrainingDiverged(ValueError):
    """Too many steps in a row had to be skipped; the last checkpoint is from before."""


class StepGuard:
    """Judges each step by its losses and the norm of its gradient, the same values on all processes.

    limit: that many skipped steps in a row end the run. spike_factor: a gradient norm above this multiple of the median of
    the last 100 taken steps is a spike (judged from 20 on); None: no finite norm is. The median, because a few
    spikes below the factor do not move it; the gradient, because it is what would change the weights, and because
    adversarial losses may pass through 0.
    """

    def __init__(self, limit: int, spike_factor: float | None) -> None:
        self.limit, self.spike_factor = limit, spike_factor
        self.skipped, self.in_a_row = 0, 0
        self.trouble, self.found = "", ""
        self.spiked = False
        self._norms: deque[float] = deque(maxlen=_WINDOW)

    def allows(self, step: int, losses: Mapping[str, float], norm: float) -> bool:
        """Whether step `step` may change the weights; counts it where it may not. `trouble` then says what the first
        step of the row had."""
        wrong = self._wrong(losses, norm)
        self.spiked = wrong is not None and all(map(math.isfinite, (*losses.values(), norm)))
        if wrong is None:
            self._norms.append(norm)
            self.in_a_row, self.trouble, self.found = 0, "", ""
            return True
        self.skipped += 1
        self.in_a_row += 1
        if self.in_a_row == 1:
            self.trouble = f"step {step}: {wrong}"
        return False

    def _wrong(self, losses: Mapping[str, float], norm: float) -> str | None:
        bad = [f"{name} is {loss}" for name, loss in losses.items() if not math.isfinite(loss)]
        if bad:
            return f"the loss of {', of '.join(bad)}"
        if not math.isfinite(norm):
            return f"the losses are finite, the norm of the gradient is {norm}"
        if self.spike_factor is None or len(self._norms) < _FIRST:
            return None
        usual = statistics.median(self._norms)
        if norm <= self.spike_factor * usual:
            return None
        return f"the gradient's norm {norm:.3g} is more than {self.spike_factor:g} times its running median {usual:.3g}"

    def words(self) -> str:
        """What the first step of the row had, and where it was found to begin."""
        return f"{self.trouble}{'; ' if self.found else ''}{self.found}"

    def check(self, step: int, checkpoints: Callable[[], list[int]]) -> None:
        """Raises TrainingDiverged after `limit` skipped steps in a row. checkpoints: gives the steps of those there are."""
        if self.in_a_row < self.limit:
            return
        raise TrainingDiverged(
            f"training stops at step {step}: {self.in_a_row} steps in a row were skipped, the first was {self.words()}. "
            f"{_left(checkpoints)}. Lower the learning rate, or change the part that is named here"
        )

    def state_dict(self) -> dict[str, Any]:
        """What a continued run needs to judge as an unbroken one, as JSON."""
        names = ("skipped", "in_a_row", "trouble", "found")
        return {**{name: getattr(self, name) for name in names}, "norms": list(self._norms)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up the state of `state_dict`. Raises ValueError, KeyError or TypeError for what is none."""
        numbers, texts = [state["skipped"], state["in_a_row"]], [state["trouble"], state["found"]]
        wrong = any(type(number) is not int for number in numbers) or any(type(text) is not str for text in texts)
        if wrong or any(type(norm) not in (int, float) for norm in state["norms"]):
            raise ValueError("the state of a guard is of another form")
        for name in ("skipped", "in_a_row", "trouble", "found"):
            setattr(self, name, state[name])
        self._norms = deque(state["norms"], maxlen=_WINDOW)


def check_weights(step: int, modules: Mapping[str, Any], checkpoints: Callable[[], list[int]]) -> None:
    """Raises TrainingDiverged where a tensor that a checkpoint would hold is not finite."""
    for kind, module in modules.items():
        for name, tensor in module.state_dict().items():
            if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
                raise TrainingDiverged(
                    f"training stops at step {step}: {name} of the {kind} is not finite, so no checkpoint is written. "
                    f"{_left(checkpoints)}. Lower the learning rate"
                )


def _left(checkpoints: Callable[[], list[int]]) -> str:
    steps = checkpoints()
    return f"The checkpoint of step {steps[-1]} is from before and intact" if steps else "There is no checkpoint yet"
