"""What a request to the scheduler is, from the outside a ticket, and how it can fail."""

from __future__ import annotations

from concurrent.futures import CancelledError, Future

import torch
from torch import Tensor

from ctm.requests import Denoise, Jump, Request, Steps, part

__all__ = ["CancelledError", "Expired", "Job", "QueueFull", "Stopped", "Ticket"]


class QueueFull(Exception):
    """So many rows wait that this request would wait too long. retry_after: seconds after which to ask again."""

    def __init__(self, rows: int, limit: int, retry_after: float) -> None:
        super().__init__(
            f"{rows} more images do not fit in the queue of {limit}: ask again in {retry_after:.0f} s, or for fewer images"
        )
        self.retry_after = retry_after


class Expired(Exception):
    """A request was not done at its deadline."""


class Stopped(Exception):
    """The scheduler takes no more requests."""


class Ticket:
    """A request that was taken. `future` is done when it has its result or its error, or is cancelled."""

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.future: Future[Tensor] = Future()

    def result(self, timeout: float | None = None) -> Tensor:
        """What the plan returned. Raises what it or its call of the network raised, `Expired`, `Stopped`, CancelledError where it
        was cancelled, and TimeoutError after `timeout` seconds."""
        return self.future.result(timeout)

    def cancel(self) -> bool:
        """Give the request up. Its rows are in no later call. False where it has ended already."""
        return self.future.cancel()


class Job:
    """A ticket's plan between two calls: the request that it waits with, and how many of its rows are answered.

    seen: whether its first request was answered, which is checked; turn: number of the call that answered it last; evaluations:
    of the network, a row."""

    def __init__(self, ticket: Ticket, steps: Steps, deadline: float | None, turn: int) -> None:
        self.ticket, self.steps, self.deadline, self.turn = ticket, steps, deadline, turn
        self.seen, self.evaluations = False, 0.0
        self._request: Request | None = None
        self._answers: list[Tensor] = []
        self._answered = 0

    @property
    def request(self) -> Request:
        """The request that waits for an answer."""
        assert self._request is not None
        return self._request

    @property
    def left(self) -> int:
        """Rows of the request that are not answered yet."""
        return len(self.request.x) - self._answered

    def take(self, count: int) -> Request:
        """The next `count` rows of the request."""
        return part(self.request, self._answered, self._answered + count)

    def start(self) -> bool:
        """Go to the first request. False where the plan has ended; so `put`."""
        return self._move(None)

    def put(self, answer: Tensor) -> bool:
        """Take the answer of the next rows. When all rows have theirs, the plan goes on to its next request."""
        self._answers.append(answer)
        self.evaluations += len(answer) / self.ticket.rows
        self._answered += len(answer)
        if self._answered < len(self.request.x):
            return True
        whole = self._answers[0] if len(self._answers) == 1 else torch.cat(self._answers)
        self._answers, self._answered, self.seen = [], 0, True
        return self._move(whole)

    def _move(self, answer: Tensor | None) -> bool:
        try:
            request = next(self.steps) if answer is None else self.steps.send(answer)
        except StopIteration as done:
            self._request = None
            self.succeed(done.value)
            return False
        if not isinstance(request, Denoise | Jump) or not len(request.x):
            raise TypeError(f"a plan yields requests of at least one row, got {type(request).__name__}")
        self._request = request
        return True

    def succeed(self, result: Tensor) -> None:
        if self.ticket.future.set_running_or_notify_cancel():
            self.ticket.future.set_result(result)

    def fail(self, error: BaseException) -> None:
        """Give the ticket its error, and let the plan's own `finally` run."""
        if not self.ticket.future.done() and self.ticket.future.set_running_or_notify_cancel():
            self.ticket.future.set_exception(error)
        self.steps.close()
