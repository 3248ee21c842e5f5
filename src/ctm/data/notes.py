"""What a user is told about data: one line for each thing, on the log, from the main process only."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable

__all__ = ["main_process", "option", "printable", "tell"]

_RANKS = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK")  # of this process, as torchrun, accelerate and MPI set it
_LOG = logging.getLogger("ctm.data")


def option(name: str, value: object = "") -> str:
    """The spelling of a data option with its value, for a sentence. `ctm train` spells it differently from the other
    commands."""
    return f"--data.{name}{f' {value}' if value != '' else ''} (--data_{name} in other commands than train)"


def printable(text: str) -> str:
    """The text with control characters replaced by �. Names of files and classes come from strangers, and control characters
    could steer a terminal."""
    return "".join(letter if letter.isprintable() else "�" for letter in text)


def main_process() -> bool:
    """Whether this is the first process of a launcher, or the only one."""
    return not any(os.environ.get(name, "0") != "0" for name in _RANKS)


def tell(lines: Iterable[str], about: str = "") -> None:
    """Log each line as a warning of `ctm.data`, as "about: line". Only the first process of a launcher logs."""
    if not main_process():
        return
    for line in lines:
        _LOG.warning("%s", printable(f"{about}: {line}" if about else line))
