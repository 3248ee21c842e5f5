"""The command `ctm`. Exit codes: 0; 2 for a user's mistake, with one sentence; 1 for our fault; 130 for Ctrl-C."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import Any

from jsonargparse import ArgumentParser

from ctm.commands.common import Parser

__all__ = ["main"]

_COMMANDS = {
    "demo": "The main job on real digits, end to end: teacher, CTM, and a report with pictures.",
    "train": "Train a diffusion teacher or a CTM by a recipe.",
    "recipes": "List the recipes that come with the package, or show one.",
    "sample": "Draw samples from a model into PNG files, one picture or an .npz.",
    "edit": "Edit pictures: inpaint, superresolve, colourise, stroke, denoise, interpolate, vary.",
    "evaluate": "Measure samples of a model at several numbers of steps against data and a teacher; write a report.",
    "tune": "Choose the noise levels of few jumps for a model, and keep them in its config.json.",
    "compare": "Compare the results of several evaluations, with significance.",
    "bench": "Measure: kinds of training against each other, ours against plain references.",
    "likelihood": "Bits per dimension of a data set under a model.",
    "convert": "Turn an EDM or official checkpoint into a model directory, or a model directory into an official .pt.",
}


def _command(name: str) -> Any:
    """The module of a command. Only the one that runs is imported: training brings much that sampling does not need."""
    return importlib.import_module(f"ctm.commands.{name}")


def _parser(chosen: str | None) -> ArgumentParser:
    from ctm import __version__

    parser = Parser(prog="ctm", description="Consistency Trajectory Models: train, distil and sample.")
    parser.add_argument("--version", action="version", version=f"ctm-torch {__version__}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subcommands(required=True, dest="command")
    for name, words in _COMMANDS.items():
        own = _command(name).parser() if name == chosen else Parser()
        commands.add_subcommand(name, own, help=words)
        if name == chosen and hasattr(_command(name), "add_subcommands"):
            _command(name).add_subcommands(own)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit code; mistakes in the arguments themselves exit with 2."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    given = [argument for argument in given if argument != "--debug"]
    chosen = next((argument for argument in given if argument in _COMMANDS), None)
    try:
        if chosen is not None and hasattr(_command(chosen), "arrange"):
            given = _command(chosen).arrange(given)
        settings = _parser(chosen).parse_args(given)
        _command(settings.command).run(settings[settings.command])
    except KeyboardInterrupt:
        more = " The same command goes on from here." if chosen in ("train", "demo", "evaluate") else ""
        print(f"ctm: stopped by Ctrl-C.{more}", file=sys.stderr)
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
