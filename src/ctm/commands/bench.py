"""Benchmarks: comparisons made in one run."""

from __future__ import annotations

from jsonargparse import Namespace

from ctm.bench import matching, overhead, restoring, samplers, shares
from ctm.terminal.parser import Parser, command_parser

__all__ = ["parser", "run"]

_BENCHMARKS = {
    "matching": matching,
    "evaluate": shares,
    "restoring": restoring,
    "samplers": samplers,
    "overhead": overhead,
}


def parser() -> Parser:
    return command_parser("bench", "Measure and compare; tables are printed, JSON is written.", "ctm bench matching")


def add_subcommands(own: Parser) -> None:
    """The benchmarks, once the command itself has its place: jsonargparse wants subcommands in the order of their levels."""
    names = own.add_subcommands(required=True, dest="benchmark")
    for name, module in _BENCHMARKS.items():
        benchmark = module.parser()
        names.add_subcommand(name, benchmark, help=benchmark.description)


def run(settings: Namespace) -> None:
    """Run the chosen benchmark."""
    _BENCHMARKS[settings.benchmark].run(settings[settings.benchmark])
