"""Many users' samplers in the same calls of one network.

A sampler is a generator of requests (`ctm.requests`). One thread owns the network. Before each call it looks at all requests that
wait, and takes as many rows as a call may have. So requests of different users, at different steps and of different samplers,
share calls, and a new request joins at the next call.
"""

from __future__ import annotations

import atexit
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ctm.arguments import as_count, inside
from ctm.models.protocol import Model
from ctm.requests import Steps, joined, kind_of
from ctm.sampling.common import device_of
from ctm.sampling.driving import answer
from ctm.serve.tickets import Asked, Job, Joinable, QueueFull, Stopped, Ticket

__all__ = ["Scheduler", "shares"]

_MEMORY = (
    0.8  # of the mean rows a second, at each call, and of the mean evaluations of a row, at the end of each request
)
_FIRST_RATE = 10.0  # rows a second, before any call was timed
_LULL = 0.0002  # seconds in which nobody asks, after which a call that nothing else waits for begins
_GATHER = 0.002  # seconds for which such a call waits at most for those who are asking


def shares(left: Sequence[int], most: int, requests: Sequence[int] | None = None) -> list[int]:
    """How many rows of a call of at most `most` rows each job gets, with `left` rows waiting each, the one that has waited
    longest first. requests: how many are in each job, None: one.

    Each request gets an equal share, at least one row while there are any, and what small ones leave goes to the first. So a
    small request is not kept waiting by a large one, nor a large one by many small ones."""
    counts = [1] * len(left) if requests is None else requests
    fair = max(1, most // max(1, sum(counts)))
    found, free = [], most
    for rows, count in zip(left, counts, strict=True):
        found.append(min(rows, fair * count, free))
        free -= found[-1]
    for index, rows in enumerate(left):
        more = min(rows - found[index], free)
        found[index] += more
        free -= more
    return found


def _jobs(asked: Sequence[Asked], most: int) -> list[Job]:
    """The jobs of what was asked, with joinable plans of one kind together, up to `most` rows."""
    groups: list[list[Asked]] = []
    open_groups: dict[Any, tuple[list[Asked], int]] = {}
    for one in asked:
        if isinstance(one.plan, Joinable):
            group, rows = open_groups.get(one.plan.kind, ([], most))
            if rows + one.ticket.rows <= most:
                group.append(one)
                open_groups[one.plan.kind] = group, rows + one.ticket.rows
                continue
            open_groups[one.plan.kind] = [one], one.ticket.rows
            groups.append(open_groups[one.plan.kind][0])
        else:
            groups.append([one])
    return [Job(group) for group in groups]


class Scheduler:
    """Drives many generators of requests by calls of one model on at most batch_size rows.

    queue_limit: rows of all requests that are taken and have not ended; observe(rows, seconds) is called after each call of the
    network. Results equal those of `ctm.sampling.driving.drive` up to the rounding of the network on another batch. The thread
    starts with the first request."""

    def __init__(
        self,
        model: Model,
        *,
        batch_size: int = 64,
        queue_limit: int = 256,
        observe: Callable[[int, float], object] | None = None,
    ) -> None:
        self.model, self.device = model, device_of(model)
        self.batch_size = as_count(batch_size, "batch_size")
        self.queue_limit = as_count(queue_limit, "queue_limit")
        self._observe = observe
        self._changed = threading.Condition()
        self._new: list[Asked] = []
        self._rows = 0
        self._rate, self._evaluations = _FIRST_RATE, 1.0
        self._turn = 0
        self._stopping = self._finishing = False
        self._thread: threading.Thread | None = None

    @property
    def rows(self) -> int:
        """Rows of the requests that are taken and have not ended."""
        return self._rows

    @property
    def takes(self) -> bool:
        """Whether requests are taken: it was not stopped, and its thread has not failed."""
        return not self._stopping

    @property
    def retry_after(self) -> float:
        """Seconds until what waits now is done, by the rate of the latest calls and the length of the latest requests; at least
        1."""
        return max(1.0, self._rows * self._evaluations / self._rate)

    def take_rows(self, rows: int) -> Callable[[], None]:
        """Take `rows` of the queue's limit, and return the function that gives them back. Raises as `submit`."""
        with self._changed:
            self._take(rows)
        given = [rows]

        def give_back() -> None:
            self._give_back(given.pop() if given else 0)

        return give_back

    def _take(self, rows: int) -> None:
        if self._stopping:
            raise Stopped("the service is stopping and takes no more requests")
        if rows > self.queue_limit:
            raise ValueError(f"{rows} images are more than the queue holds, {self.queue_limit}: ask for fewer")
        if self._rows + rows > self.queue_limit:
            raise QueueFull(rows, self.queue_limit, self.retry_after)
        self._rows += rows

    def _give_back(self, rows: int) -> None:
        with self._changed:
            self._rows -= rows

    def submit(
        self, plan: Steps | Joinable, rows: int, deadline: float | None = None, *, counted: bool = True
    ) -> Ticket:
        """A ticket for what `plan` returns, a generator of requests of `rows` rows each, or one that can be made together with
        others.

        deadline: seconds from now after which it fails with `Expired`; None: no end. counted: whether its rows count in
        queue_limit; not where `take_rows` has taken them already.
        Raises QueueFull where too many rows wait, ValueError for more rows than the queue ever holds, and Stopped."""
        ticket = Ticket(rows, partial(self._give_back, rows) if counted else None)
        end = None if deadline is None else time.monotonic() + deadline
        with self._changed:
            if counted:
                self._take(rows)
            elif self._finishing:
                raise Stopped("the service is stopping and takes no more requests")
            self._new.append(Asked(ticket, plan, end, self._turn))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="ctm-network", daemon=True)
                self._thread.start()
                atexit.register(self.stop, finish=False, timeout=10)
            if len(self._new) == 1:
                self._changed.notify()
        return ticket

    def stop(self, *, finish: bool = True, timeout: float | None = None) -> bool:
        """Take no more requests, and end the thread when what runs is done; finish=False: fail it with `Stopped` instead.
        True where the thread has ended within `timeout` seconds."""
        with self._changed:
            self._stopping, self._finishing = True, self._finishing or not finish
            self._changed.notify()
        atexit.unregister(self.stop)
        if self._thread is not None:
            self._thread.join(timeout)
        return self._thread is None or not self._thread.is_alive()

    @torch.no_grad()
    def _run(self) -> None:
        waiting: list[Job] = []
        try:
            self._serve(waiting)
        except BaseException as error:
            with self._changed:
                self._stopping = self._finishing = True
                waiting += _jobs(self._new, self.batch_size)
            for job in waiting:
                job.fail(error)
            raise

    def _serve(self, waiting: list[Job]) -> None:
        while True:
            with self._changed:
                while not (self._new or waiting or self._finishing or (self._stopping and self._rows == 0)):
                    self._changed.wait(0.1 if self._stopping else None)
                if not waiting:
                    self._gather()
                new, self._new = self._new, []
                finishing = self._finishing
            waiting += self._started(_jobs(new, self.batch_size))
            if finishing:
                for job in waiting:
                    job.fail(Stopped("the service has stopped"))
                return
            if not waiting and self._stopping and self._rows == 0:
                return
            now = time.monotonic()
            waiting[:] = [job for job in waiting if job.is_wanted(now)]
            if waiting:
                waiting[:] = self._round(waiting)

    def _gather(self) -> None:
        """Let those who ask at this moment into the same call: wait until nobody has asked for `_LULL` seconds, at most until the
        call is full or `_GATHER` seconds have passed. `submit` wakes it only for the first of them."""
        end, known = time.monotonic() + _GATHER, 0
        while known < len(self._new) < self.batch_size and not self._stopping and time.monotonic() < end:
            known = len(self._new)
            self._changed.wait(_LULL)

    def _started(self, jobs: Sequence[Job]) -> list[Job]:
        """The jobs that wait with their first request."""
        return [one for job in jobs for one in self._moved(job, job.start)]

    def _round(self, waiting: list[Job]) -> list[Job]:
        """One call of the network for some of the rows that wait -> the jobs that still wait, the next one first."""
        kind = kind_of(waiting[0].request)
        group = [job for job in waiting if kind_of(job.request) == kind][: self.batch_size]
        counts = shares([job.left for job in group], self.batch_size, [len(job.tickets) for job in group])
        some = [(job, count) for job, count in zip(group, counts, strict=True) if count]
        self._turn += 1
        answered = {job for job, _ in some}
        still = self._answer(some)
        for job in still:
            job.turn = self._turn
        return sorted([job for job in waiting if job not in answered] + still, key=lambda job: job.turn)

    def _answer(self, some: list[tuple[Job, int]]) -> list[Job]:
        """Answer rows of some jobs in one call -> the jobs that still wait. Where the call fails, each is called alone, so that
        the error is only of the job that has it."""
        try:
            answers = self._call([job.take(count) for job, count in some], all(job.seen for job, _ in some))
        except Exception as error:
            if len(some) == 1:
                return self._failed(some[0][0], error)
            return [job for one in some for job in self._answer([one])]
        pairs = [(job, given) for (job, _), given in zip(some, answers, strict=True)]
        return [one for job, given in pairs for one in self._moved(job, partial(job.put, given))]

    def _call(self, requests: list[Any], seen: bool) -> Sequence[Tensor]:
        together = joined(requests)
        started = time.perf_counter()
        with inside() if seen else nullcontext():
            answers = answer(self.model, together)
        if answers.shape != together.x.shape:
            raise ValueError(f"the model answered {tuple(answers.shape)} to {tuple(together.x.shape)}")
        seconds = max(time.perf_counter() - started, 1e-6)
        self._rate = _MEMORY * self._rate + (1 - _MEMORY) * len(answers) / seconds
        if self._observe is not None:
            self._observe(len(answers), seconds)
        return answers.split([len(request.x) for request in requests])

    def _moved(self, job: Job, move: Callable[[], bool]) -> list[Job]:
        """What waits of a job after `move`. An error of its plan is its own."""
        try:
            if move():
                return [job]
        except Exception as error:
            return self._failed(job, error)
        self._evaluations = _MEMORY * self._evaluations + (1 - _MEMORY) * max(1.0, job.evaluations)
        return []

    def _failed(self, job: Job, error: Exception) -> list[Job]:
        """What waits of a job that has failed: nothing, or its requests one by one."""
        apart = job.apart()
        if not apart:
            job.fail(error)
        return self._started(apart)
