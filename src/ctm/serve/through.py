"""The network as a plain function sees it, in calls that are shared with everyone else's.

A method that calls the model back, such as the adaptive solver of `ctm.likelihood.encode`, is no generator. It runs in a thread
of its own with a model whose `denoise` and `jump` are requests to the scheduler."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future, InvalidStateError
from contextlib import suppress
from typing import Any

from torch import Tensor

from ctm.conditions import Condition
from ctm.requests import Denoise, Jump, Request, Steps
from ctm.serve.scheduler import Scheduler
from ctm.serve.tickets import CancelledError, Ticket

__all__ = ["Through", "submit_function"]


def _one(request: Request) -> Steps:
    return (yield request)


class Through:
    """A model that asks a scheduler. Shape, levels and all else are those of the scheduler's own model.

    deadline: seconds from now for all calls. After `cancel` each call raises CancelledError."""

    def __init__(self, scheduler: Scheduler, deadline: float | None = None) -> None:
        self._scheduler, self._end = scheduler, None if deadline is None else time.monotonic() + deadline
        self._cancelled = threading.Event()
        self._ticket: Ticket | None = None

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._scheduler.model, name)

    def denoise(self, x: Tensor, t: Tensor, condition: Condition = None) -> Tensor:
        """D(x, t); shapes as of any model's `denoise`."""
        return self._ask(Denoise(x, t, condition))

    def jump(self, x: Tensor, t: Tensor, s: Tensor, condition: Condition = None) -> Tensor:
        """The jump; shapes as of any model's `jump`."""
        return self._ask(Jump(x, t, s, condition))

    def cancel(self) -> None:
        """Let the function end at its next call of the network."""
        self._cancelled.set()
        if self._ticket is not None:
            self._ticket.cancel()

    def _ask(self, request: Request) -> Tensor:
        if self._cancelled.is_set():
            raise CancelledError
        left = None if self._end is None else self._end - time.monotonic()
        self._ticket = self._scheduler.submit(_one(request), len(request.x), left, counted=False)
        return self._ticket.result()


def submit_function(
    scheduler: Scheduler,
    executor: Executor,
    function: Callable[[Any], Tensor],
    rows: int,
    deadline: float | None = None,
) -> Future[Tensor]:
    """The future of function(model), computed in a thread of `executor` with a `Through`. Cancelling it ends the function at its
    next call, and its rows are free.

    rows: of the queue's limit, for as long as the function runs. Raises as `Scheduler.submit`."""
    give_back = scheduler.take_rows(rows)
    model, result = Through(scheduler, deadline), Future[Tensor]()

    def ended(done: Future[Tensor]) -> None:
        if done.cancelled():
            model.cancel()
        give_back()

    def work() -> None:
        if result.cancelled():
            return
        try:
            value = function(model)
        except BaseException as error:
            with suppress(InvalidStateError):  # cancelled meanwhile
                result.set_exception(error)
        else:
            with suppress(InvalidStateError):
                result.set_result(value)

    result.add_done_callback(ended)
    executor.submit(work)
    return result
