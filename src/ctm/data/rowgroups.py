"""How much memory a column of a parquet file takes, by the file's own headers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ctm.data.limits import check_size

__all__ = ["check_column", "rows_at_once"]

_WIDTHS = {"INT32": 4, "FLOAT": 4, "INT64": 8, "DOUBLE": 8, "INT96": 12}  # bytes of a number; of others 1, at least
_AT_ONCE = 1 << 26  # bytes that are read at once, where one value does not take more


def check_column(what: str, metadata: Any, column: str, file_bytes: int, max_gb: float | None) -> None:
    """Raises ValueError, calling the column `what`, where it takes more than the limit of `ctm.data.limits`: all its pages
    inflated, or the numbers of one row group written out. A number that is always the same takes a few bytes in the file.

    metadata: of a pyarrow.parquet.ParquetFile."""
    inflated = largest = 0
    for group in range(metadata.num_row_groups):
        chunks = list(_chunks(metadata.row_group(group), column))
        inflated += sum(chunk.total_uncompressed_size for chunk in chunks)
        largest = max(largest, sum(chunk.num_values * _WIDTHS.get(chunk.physical_type, 1) for chunk in chunks))
    check_size(what, max(inflated, largest), file_bytes, max_gb)


def rows_at_once(metadata: Any, column: str, most: int) -> int:
    """Number of rows of a column to read together: `most`, or fewer if its texts or files are long. A text that is stored
    once and used in each of the rows must not take more than 64 MB."""
    sizes = [
        chunk.total_uncompressed_size
        for group in range(metadata.num_row_groups)
        for chunk in _chunks(metadata.row_group(group), column)
        if chunk.physical_type not in _WIDTHS
    ]
    return max(1, min(most, _AT_ONCE // max([1, *sizes])))


def _chunks(group: Any, column: str) -> Iterator[Any]:
    """The parts of a row group that hold a column; there are several if the column is nested."""
    for number in range(group.num_columns):
        chunk = group.column(number)
        if chunk.path_in_schema == column or chunk.path_in_schema.startswith(f"{column}."):
            yield chunk
