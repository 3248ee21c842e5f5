"""What the commands share."""

from __future__ import annotations

import argparse
import sys
from typing import Any, NoReturn

from jsonargparse import ArgumentParser

from ctm.commands.names import explained

__all__ = ["Parser", "command_parser"]


class Parser(ArgumentParser):
    """A parser whose mistakes are one sentence on stderr and exit code 2."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:  # of an entry's settings, inside the parser of the command
            raise argparse.ArgumentError(None, message) from ex
        lines = [line.strip() for line in str(message).splitlines() if line.strip()]
        sentence = explained(str(message)) or f"{' '.join(lines)} (see {self.prog} --help)"
        print(f"{self.prog}: {sentence}", file=sys.stderr)
        raise SystemExit(2)


def command_parser(name: str, description: str, example: str, **options: Any) -> Parser:
    """The parser of one command, its example shown under --help."""
    return Parser(prog=f"ctm {name}", description=description, epilog=f"Example: {example}", **options)
