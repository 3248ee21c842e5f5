"""Memory-mapped files that must stay as they were: whoever reads from one looks first whether it was written to or cut."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ctm.data.notes import printable

__all__ = ["check_unchanged", "watched"]


class _Watched(np.memmap):
    """An array of a mapped file, which remembers what the file was."""

    file: Path | None = None
    state: tuple[int, ...] = ()


def watched(array: np.ndarray, file: Path) -> np.ndarray:
    """The same numbers, of which `check_unchanged` knows that they are mapped from `file`."""
    found: _Watched = array.view(_Watched)
    found.file, found.state = file.absolute(), _state(file)
    return found


def check_unchanged(array: np.ndarray) -> None:
    """Raises ValueError, naming the file, where a mapped file was changed or cut since it was opened: other numbers would be
    read from it, and reading behind its end kills the process. A file of that name that took its place does no harm: what is
    mapped is the old one. Costs one look at the directory, and nothing for an array in memory. A view is as its array."""
    found: object = array
    while isinstance(found, np.ndarray):
        if isinstance(found, _Watched) and found.file is not None:
            _check(found.file, found.state)
            return
        found = found.base


def _check(file: Path, before: tuple[int, ...]) -> None:
    try:
        now = _state(file)
    except OSError:  # removed, or another directory: what is mapped stays
        return
    if now[:2] == before[:2] and now != before:
        what = "was cut" if now[2] < before[2] else "was written to"
        raise ValueError(
            f"{printable(str(file))} {what} while it was being read from: its numbers are no longer those that were checked and "
            "digested. Write new data to a file of another name, and begin again"
        )


def _state(file: Path) -> tuple[int, ...]:
    found = file.stat()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
