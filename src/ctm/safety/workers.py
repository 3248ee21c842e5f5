"""A function in a thread of its own, with a deadline for each call."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any

__all__ = ["Failed", "Late", "Worker"]


class Late(Exception):
    """A call did not end before its deadline."""


class Failed(Exception):
    """A call raised. kind: the name of its error."""

    def __init__(self, kind: str) -> None:
        super().__init__(kind)
        self.kind = kind


class _Call:
    def __init__(self, argument: Any) -> None:
        self.argument = argument
        self.ended = threading.Event()
        self.result: Any = None
        self.failure: str | None = None
        self.abandoned = False


class Worker:
    """Runs one function, one call at a time. A call that hangs holds the thread, and the calls behind it are late too until it
    ends: threads do not pile up. The thread does not keep the process alive."""

    def __init__(self, function: Callable[[Any], Any], name: str) -> None:
        self._function = function
        self._calls: queue.SimpleQueue[_Call] = queue.SimpleQueue()
        threading.Thread(target=self._work, name=name, daemon=True).start()

    def call(self, argument: Any, deadline: float) -> Any:
        """The function's result within `deadline` seconds. Raises Late, or Failed where it raises."""
        call = _Call(argument)
        self._calls.put(call)
        if not call.ended.wait(deadline):
            call.abandoned = True
            raise Late
        if call.failure is not None:
            raise Failed(call.failure)
        return call.result

    def _work(self) -> None:
        while True:
            call = self._calls.get()
            if call.abandoned:
                continue
            try:
                call.result = self._function(call.argument)
            except BaseException as error:  # also SystemExit: the thread must serve the next call
                call.failure = type(error).__name__
            call.ended.set()
            del call
