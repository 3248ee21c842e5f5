"""Progress of a job: a bar in a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import TypeVar

from rich import progress as rich_progress
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ctm.console import text_console

__all__ = ["JobBar", "Progress", "silent", "tracked", "tracked_parts"]

_LINE_SECONDS = 20.0
_T = TypeVar("_T")
_Bar = TypeVar("_Bar", bound="JobBar")
Progress = Callable[
    [Iterable[int], str], Iterable[int]
]  # (parts of a job, its name) -> the parts, shown as they are used up


def silent(parts: Iterable[int], words: str) -> Iterable[int]:
    """The parts, with no progress shown."""
    return parts


class JobBar:
    """Progress of `total` steps, with rate, time left and a note. It is silent if `shown` is false (other processes).

    total: None if unknown; then no time left is shown. unit: the name of a step, in the plural. console: where it is shown,
    by default stderr."""

    def __init__(
        self,
        title: str,
        total: int | None,
        done: int = 0,
        *,
        unit: str = "steps",
        shown: bool = True,
        console: Console | None = None,
    ) -> None:
        self.title, self.total, self.done, self.unit = title, total, done, unit
        self.console = console or text_console(stderr=True)
        self._shown, self._live = shown, shown and self.console.is_terminal
        self._started, self._first, self._last_line = time.monotonic(), done, time.monotonic()
        self._lines, self._told = 0, -1
        columns = (
            TextColumn("{task.description}", style="bold", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}", markup=False),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False),
        )
        self._progress = rich_progress.Progress(*columns, console=self.console, disable=not self._live)
        self._task = self._progress.add_task(title, total=total, completed=done, rate="", note="")

    def __enter__(self: _Bar) -> _Bar:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def advance(self, steps: int = 1) -> None:
        """Count so many more steps as done."""
        self.done += steps
        if self._live:
            self._progress.update(self._task, completed=self.done, rate=f"{self._rate():.3g} {self.unit}/s")

    def reach(self, done: int, text: str = "") -> None:
        """Set the number of steps done. Outside a terminal, print a line if the last one is 20 seconds old."""
        self.advance(done - self.done)
        if self._live:
            self._progress.update(self._task, note=text)
        self.remind(text)

    def note(self, text: str) -> None:
        """Show the newest numbers. Outside a terminal, print a line at most every 20 seconds and at the end."""
        if self._live:
            self._progress.update(self._task, note=text)
        elif self.done == self.total:
            self._line(text)
        else:
            self.remind(text)

    def remind(self, text: str = "") -> None:
        """Outside a terminal, print a line if the last one is 20 seconds old."""
        if not self._live and time.monotonic() - self._last_line > _LINE_SECONDS:
            self._line(text)

    def finish(self) -> None:
        """Print the last line of a job that has printed lines, unless it is there. A short job has printed none and stays
        silent."""
        if not self._live and self._lines and self._told != self.done:
            self._line("")

    def say(self, text: str) -> None:
        """Print a sentence, if the bar is shown."""
        if self._shown:
            self.console.print(f"{self.title}: {text}")

    def _line(self, text: str) -> None:
        if not self._shown:
            return
        self._last_line, self._lines, self._told = time.monotonic(), self._lines + 1, self.done
        words = f"{self.done}/{self.total or '?'} {self.unit}, {self._rate():.3g} {self.unit}/s"
        if self.total is not None and self.done > self._first:
            words += f", {(self.total - self.done) / self._rate():.0f} s left"
        self.say(f"{words}, {text}" if text else words)

    def _rate(self) -> float:
        return (self.done - self._first) / max(time.monotonic() - self._started, 1e-9)


def tracked(
    items: Iterable[_T], title: str, total: int | None = None, *, unit: str = "parts", shown: bool = True
) -> Iterator[_T]:
    """The items, with a bar on stderr while they are used; a line now and then if stderr is no terminal.

    total: number of items; None takes len(items). unit: the name of an item, in the plural."""
    count = len(items) if total is None else total  # type: ignore[arg-type]
    with JobBar(title, count, unit=unit, shown=shown) as bar:
        for item in items:
            yield item
            bar.advance()
            bar.remind()
        bar.finish()


def tracked_parts(parts: Iterable[int], words: str) -> Iterable[int]:
    """A `Progress` with a bar, as `tracked` shows it."""
    return tracked(list(parts), words)
