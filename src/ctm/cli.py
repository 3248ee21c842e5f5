"""The command `ctm`. Exit codes: 0; 2 for a user's mistake, with one sentence; 1 for our fault; 130 for Ctrl-C."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

from jsonargparse import ArgumentParser

from ctm import __version__
from ctm.commands import convert, demo, sample, train

__all__ = ["main"]

_COMMANDS: dict[str, Any] = {"demo": demo, "train": train, "sample": sample, "convert": convert}


def _parser() -> ArgumentParser:
    parser = ArgumentParser(prog="ctm", description="Consistency Trajectory Models: train, distil and sample.")
    parser.add_argument("--version", action="version", version=f"ctm-torch {__version__}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subcommands(required=True, dest="command")
    for name, module in _COMMANDS.items():
        commands.add_subcommand(name, module.parser(), help=module.__doc__.split("\n")[0])
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit code; argparse's own errors exit with 2."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    given = [argument for argument in given if argument != "--debug"]
    settings = _parser().parse_args(given)
    run: Callable[[Any], None] = _COMMANDS[settings.command].run
    try:
        run(settings[settings.command])
    except KeyboardInterrupt:
        print("ctm: stopped by Ctrl-C. The same command goes on from here.", file=sys.stderr)
        return 130
    except (ValueError, FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError) as error:
        if debug:
            raise
        print(f"ctm: {error}", file=sys.stderr)
        return 2
    except Exception as error:
        if debug:
            raise
        print(f"ctm: {type(error).__name__}: {error}\nThis is a fault of ctm; --debug shows where.", file=sys.stderr)
        return 1
    return 0
