"""What a request to the scheduler is, from the outside a ticket, and how it can fail."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ctm.requests import Denoise, Jump, Request, Steps, part, taken

__all__ = ["Asked", "CancelledError", "Expired", "Job", "Joinable", "QueueFull", "Stopped", "Ticket"]


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
    """A request that was taken. `future` is done when it has its result or its error, or is cancelled; `ended` says so without
    a lock."""

    def __init__(self, rows: int, give_back: Callable[[], object] | None = None) -> None:
        self.rows, self.ended, self._give_back = rows, False, give_back
        self.future: Future[Tensor] = Future()
        self.future.add_done_callback(self._end)

    def _end(self, _: Future[Tensor]) -> None:
        self.ended = True
        if self._give_back is not None:
            self._give_back()

    def result(self, timeout: float | None = None) -> Tensor:
        """What the plan returned. Raises what it or its call of the network raised, `Expired`, `Stopped`, CancelledError where it
        was cancelled, and TimeoutError after `timeout` seconds."""
        return self.future.result(timeout)

    def cancel(self) -> bool:
        """Give the request up. Its rows are in no later call. False where it has ended already."""
        return self.future.cancel()

    def succeed(self, result: Tensor) -> None:
        if self.future.set_running_or_notify_cancel():
            self.future.set_result(result)

    def fail(self, error: BaseException) -> None:
        if not self.future.done() and self.future.set_running_or_notify_cancel():
            self.future.set_exception(error)


@dataclass(frozen=True)
class Joinable:
    """A plan that can be made together with others of an equal `kind`, so that what a plan costs is paid once for all of them.

    make(parts): the plan of the rows of all parts, in their order. Each of its requests has those rows, or those rows several
    times over, and it returns one result a row. Made of one part alone it is the plan of that part, and made again the same."""

    kind: Hashable
    part: Any
    make: Callable[[Sequence[Any]], Steps]


@dataclass(frozen=True)
class Asked:
    """What was asked: the ticket, its plan, when it expires, and in which turn it came."""

    ticket: Ticket
    plan: Steps | Joinable
    deadline: float | None
    turn: int


class Job:
    """The plan of one ticket, or of several that are made together, between two calls: the request that it waits with, and how
    many of its rows are answered.

    seen: whether its first request was answered, which is checked; turn: number of the call that answered it last; evaluations:
    of the network, a row. Rows of tickets that have ended are left out of the network's calls from the next request on."""

    def __init__(self, asked: Sequence[Asked]) -> None:
        self._asked = asked
        self.tickets, self.turn = [one.ticket for one in asked], asked[0].turn
        self.deadline = min((one.deadline for one in asked if one.deadline is not None), default=None)
        self.rows = sum(ticket.rows for ticket in self.tickets)
        self.seen, self.evaluations = False, 0.0
        self._steps: Steps | None = None
        self._request: Request | None = None
        self._answers: list[Tensor] = []
        self._answered = 0
        self._wanted: Tensor | None = None  # numbers of the request's rows that somebody waits for; None: all

    @property
    def request(self) -> Request:
        """The request that waits for an answer."""
        assert self._request is not None
        return self._request

    @property
    def _count(self) -> int:
        return len(self.request.x) if self._wanted is None else len(self._wanted)

    @property
    def left(self) -> int:
        """Rows of the request that are not answered yet."""
        return self._count - self._answered

    def take(self, count: int) -> Request:
        """The next `count` rows of the request."""
        end = self._answered + count
        if self._wanted is None:
            return part(self.request, self._answered, end)
        return taken(self.request, self._wanted[self._answered : end])

    def start(self) -> bool:
        """Go to the first request. False where the plan has ended; so `put`."""
        plan = self._asked[0].plan
        if isinstance(plan, Joinable):
            self._steps = plan.make([one.plan.part for one in self._asked])  # type: ignore[union-attr]
        else:
            self._steps = plan
        return self._move(None)

    def put(self, answer: Tensor) -> bool:
        """Take the answer of the next rows. When all rows have theirs, the plan goes on to its next request."""
        self._answers.append(answer)
        self.evaluations += len(answer) / self.rows
        self._answered += len(answer)
        if self._answered < self._count:
            return True
        whole = self._answers[0] if len(self._answers) == 1 else torch.cat(self._answers)
        if self._wanted is not None:
            whole = self.request.x.index_copy(0, self._wanted, whole)
        self._answers, self._answered, self.seen = [], 0, True
        return self._move(whole)

    def _move(self, answer: Tensor | None) -> bool:
        assert self._steps is not None
        try:
            request = next(self._steps) if answer is None else self._steps.send(answer)
        except StopIteration as done:
            self._request = None
            self._succeed(done.value)
            return False
        if not isinstance(request, Denoise | Jump) or not len(request.x):
            raise TypeError(f"a plan yields requests of at least one row, got {type(request).__name__}")
        self._request, self._wanted = request, self._wanted_of(len(request.x))
        return True

    def _wanted_of(self, count: int) -> Tensor | None:
        if len(self.tickets) == 1 or not any(ticket.ended for ticket in self.tickets):
            return None
        mine = torch.cat([torch.full((ticket.rows,), not ticket.ended) for ticket in self.tickets])
        return mine.repeat(count // self.rows).nonzero()[:, 0].to(self.request.x.device)

    def _succeed(self, result: Tensor) -> None:
        if len(self.tickets) == 1:
            self.tickets[0].succeed(result)
            return
        for ticket, own in zip(self.tickets, result.split([ticket.rows for ticket in self.tickets]), strict=True):
            ticket.succeed(own)

    def is_wanted(self, now: float) -> bool:
        """Whether anybody still waits for it. Tickets whose deadline has passed fail."""
        if self.deadline is not None and now > self.deadline:
            for one in self._asked:
                if one.deadline is not None and now > one.deadline:
                    words = "the request was not done at its deadline: ask for fewer images or steps, or later"
                    one.ticket.fail(Expired(words))
            ends = [one.deadline for one in self._asked if one.deadline is not None and not one.ticket.ended]
            self.deadline = min(ends, default=None)
        if not all(ticket.ended for ticket in self.tickets):
            return True
        self._close()
        return False

    def apart(self) -> list[Job]:
        """The tickets that have not ended as a job each, from the beginning: where what is made together fails, the error is
        only of the one that has it. None for a single ticket."""
        self._close()
        return [] if len(self._asked) == 1 else [Job([one]) for one in self._asked if not one.ticket.ended]

    def fail(self, error: BaseException) -> None:
        """Give the tickets the error, and let the plan's own `finally` run."""
        for ticket in self.tickets:
            ticket.fail(error)
        self._close()

    def _close(self) -> None:
        plan = self._asked[0].plan if self._steps is None else self._steps
        if not isinstance(plan, Joinable):
            plan.close()
