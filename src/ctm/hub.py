"""The model hub, asked within a bounded time."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread

from huggingface_hub import constants
from huggingface_hub.utils import get_session  # type: ignore[attr-defined]
from huggingface_hub.utils import logging as hub_logging

__all__ = ["asking_hub"]

_SECONDS = 5.0  # for an answer of any kind


@contextmanager
def asking_hub() -> Iterator[None]:
    """Inside the block the hub's libraries ask the hub if it answers, and else their caches alone. Where there is no network
    their own tries take half a minute and print a line each; this takes 5 s at most and prints nothing."""
    hub_logging.set_verbosity_error()
    if constants.HF_HUB_OFFLINE or _answers(_SECONDS):
        yield
        return
    settings = [constants, *(sys.modules[name] for name in ("datasets.config",) if name in sys.modules)]
    before = [module.HF_HUB_OFFLINE for module in settings]
    for module in settings:
        module.HF_HUB_OFFLINE = True  # type: ignore[attr-defined]
    try:
        yield
    finally:
        for module, value in zip(settings, before, strict=True):
            module.HF_HUB_OFFLINE = value  # type: ignore[attr-defined]


def _answers(seconds: float) -> bool:
    """Whether the hub answers within that time. A thread asks, because looking up a name has no limit of its own."""
    answers: list[object] = []

    def ask() -> None:
        try:
            answers.append(get_session().head(constants.ENDPOINT, timeout=seconds))
        except Exception:  # of several libraries, for a name, a connection or a proxy
            return

    thread = Thread(target=ask, daemon=True, name="ctm-hub")
    thread.start()
    thread.join(seconds)
    return bool(answers)
