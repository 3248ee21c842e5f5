"""Compare the results of several evaluations, with significance."""

from __future__ import annotations

from pathlib import Path

from jsonargparse import Namespace
from rich.box import SIMPLE
from rich.table import Table

from ctm.console import text_console
from ctm.evaluation.compare import compare
from ctm.evaluation.measure import METRICS
from ctm.evaluation.number import Number
from ctm.evaluation.plans import title_of
from ctm.evaluation.report import read_result
from ctm.foreign.text import JSONObject
from ctm.terminal.parser import Parser, command_parser

__all__ = ["parser", "run"]


def parser() -> Parser:
    result = command_parser(
        "compare",
        "Put results of ctm evaluate side by side: one table of all rows, and the differences of the others from the first that "
        "are significant at 5 % (two-sided, from the error bars, Holm's correction over all differences looked at). Results "
        "whose protocols differ are refused.",
        "ctm compare runs/a/result.json runs/b/result.json",
    )
    result.add_argument("results", type=str, nargs="+", help="result.json files, or folders of evaluations")
    return result


def run(settings: Namespace) -> None:
    """Print one table of all rows, and one of the significant differences."""
    results = [(name, read_result(Path(name))) for name in settings.results]
    comparisons = compare(results)
    console = text_console(wide=True)
    console.print(_rows(results))
    for warning in dict.fromkeys(text for _, result in results for text in result.get("warnings", ())):
        console.print(warning)
    wanted = [each for each in comparisons if each.verdict]
    count = sum(each.p is not None for each in comparisons)
    console.print(f"{len(wanted)} of {count} differences are significant at 5 % after Holm's correction.")
    if wanted:
        table = Table("", "", results[0][0], "other", "p", "", box=SIMPLE, padding=(0, 1, 0, 0))
        for each in wanted:
            title = f"{METRICS[each.metric].title}"
            values = [f"{each.first:.4g}", f"{each.other}: {each.second:.4g}"]
            table.add_row(title_of(each.row), title, *values, f"{each.p:.1e}", each.verdict)
        console.print(table)


def _rows(results: list[tuple[str, JSONObject]]) -> Table:
    """The rows of all results for the table, with every number of `shown` that some row has."""
    shown = ("frechet", "kid", "precision", "recall", "label_accuracy", "mse_to_teacher", "bits_per_dim")
    rows = [(name, row) for name, result in results for row in result["rows"]]
    names = [metric for metric in shown if any(metric in row["numbers"] for _, row in rows)]
    table = Table("result", "", *(METRICS[metric].title for metric in names), "ms", box=SIMPLE, padding=(0, 1, 0, 0))
    for name, row in rows:
        cells = [str(Number(**row["numbers"][metric])) if metric in row["numbers"] else "" for metric in names]
        speed = row["seconds_per_image"]
        table.add_row(name, title_of(row), *cells, "" if speed is None else f"{1000 * speed:.3g}")
    return table
