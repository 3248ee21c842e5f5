"""Work of many requests in one call, beside the network: the filter, and the transaction that keeps pictures."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Generic, TypeVar

__all__ = ["Batcher"]

A = TypeVar("A")
B = TypeVar("B")


class Batcher(Generic[A, B]):
    """Calls work(items) -> results, one for each item, in a thread of its own, with all that came while it was busy.

    most: items of a call; more of one request stay together. Where a call on several requests raises, each request is called
    alone, so that the error is only of the request that has it; not where the error is one of `common`, which all would meet.
    stop() ends it when all is done."""

    def __init__(
        self,
        work: Callable[[list[A]], Sequence[B]],
        name: str,
        most: int = 32,
        common: tuple[type[BaseException], ...] = (),
    ) -> None:
        self._work, self._most, self._common = work, most, common
        self._changed = threading.Condition()
        self._waiting: list[tuple[list[A], Future[list[B]]]] = []
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name=f"ctm-{name}", daemon=True)
        self._thread.start()

    def submit(self, items: Sequence[A]) -> Future[list[B]]:
        """The future of the results of these items. Raises RuntimeError after stop."""
        future: Future[list[B]] = Future()
        with self._changed:
            if self._stopping:
                raise RuntimeError("this was stopped, and takes no more work")
            self._waiting.append((list(items), future))
            self._changed.notify()
        return future

    def stop(self, timeout: float | None = None) -> bool:
        """Finish what was submitted, and end the thread. True where it ended within `timeout` seconds."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._stopping:
                    self._changed.wait()
                if not self._waiting:
                    return
                taken, count = 1, len(self._waiting[0][0])
                while taken < len(self._waiting) and count + len(self._waiting[taken][0]) <= self._most:
                    count += len(self._waiting[taken][0])
                    taken += 1
                batch, self._waiting = self._waiting[:taken], self._waiting[taken:]
            self._answer([one for one in batch if one[1].set_running_or_notify_cancel()])

    def _answer(self, batch: list[tuple[list[A], Future[list[B]]]]) -> None:
        if not batch:
            return
        try:
            results = list(self._work([item for items, _ in batch for item in items]))
            if len(results) != sum(len(items) for items, _ in batch):
                raise ValueError(f"{len(results)} results came for {sum(len(items) for items, _ in batch)} items")
        except BaseException as error:
            if len(batch) == 1 or isinstance(error, self._common):
                for _, future in batch:
                    future.set_exception(error)
                return
            for one in batch:
                self._answer([one])
            return
        for items, future in batch:
            future.set_result(results[: len(items)])
            results = results[len(items) :]
