"""Ctrl-C at a step boundary: the first asks for a checkpoint, the second stops at once."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

__all__ = ["InterruptLater"]


class InterruptLater:
    """While entered, SIGINT sets `requested`; a second SIGINT raises KeyboardInterrupt. Does nothing off the main thread,
    where Python has no signals."""

    def __init__(self) -> None:
        self.requested = False
        self._previous: Any = None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True

    def __enter__(self) -> InterruptLater:
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)
