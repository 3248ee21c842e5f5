"""A console for text as it is: a path, a class name or a model's name is never markup."""

from __future__ import annotations

import sys

from rich.console import Console

__all__ = ["as_typed", "text_console"]

_FILE_WIDTH = 240


class _Console(Console):
    """A rich console. If nobody reads the pipe, `ctm.cli` handles it and ends quietly."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def as_typed(name: str) -> str:
    """The name of a class as --labels takes it among others: in double quotes, each of its own doubled, where it is empty or has
    a comma, a quote or blanks at an end."""
    plainly = name == name.strip() != "" and not set(name) & set(',"')
    return name if plainly else '"' + name.replace('"', '""') + '"'


def text_console(*, stderr: bool = False, wide: bool = False) -> Console:
    """A console on which [brackets] and :colons: stay as they are.

    wide: for tables; in a file or a pipe nothing is cut to the width of a terminal."""
    stream = sys.stderr if stderr else sys.stdout
    in_file = wide and not (stream is not None and stream.isatty())
    return _Console(
        stderr=stderr,
        markup=False,
        emoji=False,
        highlight=False,
        soft_wrap=True,
        width=_FILE_WIDTH if in_file else None,
    )
