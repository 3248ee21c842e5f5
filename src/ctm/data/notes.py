"""What a user is told about data: one line each, on the log, from the main one of several processes."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable

__all__ = ["printable", "tell"]

_LOG = logging.getLogger("ctm.data")


def printable(text: str) -> str:
    """The text with control characters, which could steer a terminal, as �: names of files and classes come from strangers."""
    return "".join(letter if letter.isprintable() else "�" for letter in text)


def tell(lines: Iterable[str], about: str = "") -> None:
    """Each line as a warning of the log `ctm.data`, "about: line"; silent in all but the first process of a launcher (RANK,
    as torchrun and accelerate set it)."""
    if os.environ.get("RANK", "0") != "0":
        return
    for line in lines:
        _LOG.warning("%s", printable(f"{about}: {line}" if about else line))
