"""The rows of an evaluation as a table in the terminal."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.box import SIMPLE
from rich.table import Table

from ctm.evaluation.plans import title_of
from ctm.evaluation.rows import Row

__all__ = ["rows_table"]

_SHOWN: dict[str, tuple[str, Callable[[float], str] | None]] = {
    "frechet": ("Fréchet", None),
    "frechet_infinity": ("∞", "{:.4g}".format),
    "precision": ("prec.", "{:.2f}".format),
    "recall": ("recall", "{:.2f}".format),
    "label_accuracy": ("labels", "{:.1%}".format),
    "mse_to_teacher": ("MSE", "{:.4f}".format),
    "bits_per_dim": ("bits/dim", "{:.2f}".format),
}


def rows_table(rows: Sequence[Row]) -> Table:
    """One line for each row: what it is, of the most asked numbers those that any row has, and milliseconds for an image."""
    table = Table(box=SIMPLE, padding=(0, 1, 0, 0))
    names = [name for name in _SHOWN if any(name in row.numbers for row in rows)]
    for column in ("", *(_SHOWN[name][0] for name in names), "ms"):
        table.add_column(column, justify="left" if column == "" else "right", no_wrap=True)
    for row in rows:
        speed = row.seconds_per_image
        cells = [_cell(row, name) for name in names]
        table.add_row(title_of(row.record), *cells, "" if speed is None else f"{1000 * speed:.3g}")
    return table


def _cell(row: Row, name: str) -> str:
    if name not in row.numbers:
        return ""
    shape = _SHOWN[name][1]
    return str(row.numbers[name]) if shape is None else shape(row.numbers[name].value)
