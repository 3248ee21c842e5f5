"""The parser that all commands share."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from jsonargparse import ArgumentParser

from ctm.terminal.formatter import Help
from ctm.terminal.names import explained
from ctm.terminal.wording import mistake

__all__ = ["Parser", "command_parser"]

_OPTION = re.compile(r"--[a-z][\w.-]*", re.ASCII)  # without its value
_NEGATIVE = re.compile(r"-\.?\d")
_LONGEST, _LONGEST_VALUE = 800, 120  # characters of a message, and of the value that it quotes


class Parser(ArgumentParser):
    """An argument parser. A mistake is one sentence on stderr and exit code 2. An option counts by its whole name alone: the
    beginning of a name would be another option as soon as there are two that begin with it."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, formatter_class=Help, allow_abbrev=False, **options)

    @property
    def prog(self) -> str:
        """`ctm sample`; the library would write `ctm [options] sample`."""
        return self._prog

    @prog.setter
    def prog(self, name: str) -> None:
        self._prog = name.replace(" [options]", "")

    def parse_args(self, args: Sequence[str] | None = None, *others: Any, **options: Any) -> Any:  # type: ignore[override]
        return super().parse_args(_joined(sys.argv[1:] if args is None else args), *others, **options)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:  # of an entry's settings, inside the parser of the command
            raise argparse.ArgumentError(None, message) from ex
        lines = [line.strip() for line in str(message).splitlines() if line.strip()]
        words = explained(str(message)) or mistake(str(message), self) or _shortened(" ".join(lines))
        sentence = words if "(see " in words or "--allow" in words else f"{words} (see {self.prog} --help)"
        print(f"{self.prog}: {sentence}", file=sys.stderr)
        raise SystemExit(2)


def _joined(arguments: Sequence[str]) -> list[str]:
    """The arguments with `--labels -1,0` as `--labels=-1,0`. argparse takes a text that begins with - for an option, unless it
    is one number."""
    result: list[str] = []
    for argument in arguments:
        if result and _OPTION.fullmatch(result[-1]) and _NEGATIVE.match(argument):
            result[-1] += f"={argument}"
        else:
            result.append(argument)
    return result


def _shortened(message: str) -> str:
    """A message of jsonargparse with a long value cut: what is wrong stands before the value."""
    before, mark, value = message.partition("Got value: ")
    value = value if len(value) <= _LONGEST_VALUE else f"{value[:_LONGEST_VALUE]}…"
    return before[:_LONGEST] + ("…" if len(before) > _LONGEST else mark + value)


def command_parser(name: str, description: str, example: str, **options: Any) -> Parser:
    """The parser of one command. Its help ends with the example."""
    return Parser(prog=f"ctm {name}", description=description, epilog=f"Example: {example}", **options)
