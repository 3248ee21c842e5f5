"""What a user is told about data: one line each, on the log, from the main one of several processes."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable

__all__ = ["option", "printable", "tell"]

_RANKS = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK")  # of this process, as torchrun, accelerate and MPI set it
_LOG = logging.getLogger("ctm.data")


def option(name: str, value: object = "") -> str:
    """An option of data for a sentence, with its value: `ctm train` spells it otherwise than the other commands."""
    return f"--data.{name}{f' {value}' if value != '' else ''} (--data_{name} in other commands than train)"


def printable(text: str) -> str:
    """The text with control characters, which could steer a terminal, as �: names of files and classes come from strangers."""
    return "".join(letter if letter.isprintable() else "�" for letter in text)


def tell(lines: Iterable[str], about: str = "") -> None:
    """Each line as a warning of the log `ctm.data`, "about: line"; silent in all but the first process of a launcher."""
    if any(os.environ.get(name, "0") != "0" for name in _RANKS):
        return
    for line in lines:
        _LOG.warning("%s", printable(f"{about}: {line}" if about else line))
