"""The public boundary: where a stranger's call is checked, and how a method that was checked once goes on without."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

__all__ = ["checked", "inside"]

_INSIDE: ContextVar[bool] = ContextVar("ctm_inside", default=False)


def checked() -> bool:
    """Whether a call of a model is a stranger's, whose shapes, labels and levels are to be checked."""
    return not _INSIDE.get()


@contextmanager
def inside() -> Iterator[None]:
    """Meanwhile models check nothing of their arguments: checks read values back, and each read waits for the device.

    For loops whose first call was checked and whose others are made of the same rows."""
    token = _INSIDE.set(True)
    try:
        yield
    finally:
        _INSIDE.reset(token)
