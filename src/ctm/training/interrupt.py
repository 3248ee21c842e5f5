"""Ctrl-C and SIGTERM at a step boundary: the first asks for a checkpoint, a second Ctrl-C stops at once."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

__all__ = ["InterruptLater", "Terminated"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Terminated(SystemExit):
    """SIGTERM came and a checkpoint is written: the process ends with exit code 0, as cluster schedulers expect."""

    def __init__(self) -> None:
        super().__init__(0)


class InterruptLater:
    """While entered, `requested` is the signal that came, SIGINT or SIGTERM (0: none); SIGINT counts more than SIGTERM, and a
    second SIGINT raises KeyboardInterrupt. Does nothing off the main thread, where Python has no signals."""

    def __init__(self) -> None:
        self.requested = 0
        self._previous: dict[int, Any] = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == self.requested == signal.SIGINT:
            raise KeyboardInterrupt
        if self.requested != signal.SIGINT:
            self.requested = number

    def __enter__(self) -> InterruptLater:
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._handle) for number in _SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, previous in self._previous.items():
            signal.signal(number, previous)
