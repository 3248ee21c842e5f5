"""The parser that all commands share."""

from __future__ import annotations

import argparse
import sys
from typing import Any, NoReturn

from jsonargparse import ArgumentParser

from ctm.terminal.names import explained

__all__ = ["Parser", "command_parser"]

_LONGEST, _LONGEST_VALUE = 800, 120  # characters of a message, and of the value that it quotes


class Parser(ArgumentParser):
    """An argument parser. A mistake is one sentence on stderr and exit code 2."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:  # of an entry's settings, inside the parser of the command
            raise argparse.ArgumentError(None, message) from ex
        lines = [line.strip() for line in str(message).splitlines() if line.strip()]
        sentence = explained(str(message)) or f"{_shortened(' '.join(lines))} (see {self.prog} --help)"
        print(f"{self.prog}: {sentence}", file=sys.stderr)
        raise SystemExit(2)


def _shortened(message: str) -> str:
    """A message of jsonargparse with a long value cut: what is wrong stands before the value."""
    before, mark, value = message.partition("Got value: ")
    value = value if len(value) <= _LONGEST_VALUE else f"{value[:_LONGEST_VALUE]}…"
    return before[:_LONGEST] + ("…" if len(before) > _LONGEST else mark + value)


def command_parser(name: str, description: str, example: str, **options: Any) -> Parser:
    """The parser of one command. Its help ends with the example."""
    return Parser(prog=f"ctm {name}", description=description, epilog=f"Example: {example}", **options)
