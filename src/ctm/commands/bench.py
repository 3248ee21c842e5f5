"""`ctm bench`: benchmarks. Each compares things in one run."""

from __future__ import annotations

from jsonargparse import Namespace

from ctm.bench import gpu, overhead, restoring, samplers, serve, shares, teach
from ctm.terminal.parser import Parser, command_parser

__all__ = ["parser", "run"]

_BENCHMARKS = {
    "teach": teach,
    "evaluate": shares,
    "restoring": restoring,
    "samplers": samplers,
    "overhead": overhead,
    "serve": serve,
    "gpu": gpu,
}


def parser() -> Parser:
    return command_parser("bench", "Measure and compare; tables are printed, JSON is written.", "ctm bench teach")


def add_subcommands(own: Parser) -> None:
    """Add one subcommand for each benchmark. It is called after the command itself has its place, because jsonargparse adds
    subcommands level by level."""
    names = own.add_subcommands(required=True, dest="benchmark")
    for name, module in _BENCHMARKS.items():
        benchmark = module.parser()
        names.add_subcommand(name, benchmark, help=benchmark.description)


def run(settings: Namespace) -> None:
    """Run the chosen benchmark."""
    _BENCHMARKS[settings.benchmark].run(settings[settings.benchmark])
