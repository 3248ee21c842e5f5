"""What a person sees while a run goes on: a bar in a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

__all__ = ["TrainingBar"]

_LINE_SECONDS = 20.0


class TrainingBar:
    """Progress of `total` steps with rate, time left and the losses. Silent where `shown` is false (other processes)."""

    def __init__(self, title: str, total: int, done: int = 0, *, shown: bool = True) -> None:
        self.title, self.total, self.done = title, total, done
        self.console = Console()
        self._shown, self._live = shown, shown and self.console.is_terminal
        self._started, self._first, self._last_line = time.monotonic(), done, time.monotonic()
        columns = (
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        self._progress = Progress(*columns, console=self.console, disable=not self._live)
        self._task = self._progress.add_task(title, total=total, completed=done, rate="", note="")

    def __enter__(self) -> TrainingBar:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def advance(self) -> None:
        """One more step done."""
        self.done += 1
        if self._live:
            self._progress.update(self._task, completed=self.done, rate=f"{self._rate():.1f} steps/s")

    def note(self, text: str) -> None:
        """The newest losses; outside a terminal a line at most every 20 seconds and at the end."""
        if self._live:
            self._progress.update(self._task, note=text)
        elif self._shown and (time.monotonic() - self._last_line > _LINE_SECONDS or self.done == self.total):
            self._last_line = time.monotonic()
            left = (self.total - self.done) / max(self._rate(), 1e-9)
            self.console.print(
                f"{self.title}: {self.done}/{self.total} steps, {self._rate():.1f} steps/s, {left:.0f} s left, {text}",
                highlight=False,
                soft_wrap=True,
            )

    def say(self, text: str) -> None:
        """A sentence of its own, where the bar is shown."""
        if self._shown:
            self.console.print(f"{self.title}: {text}", highlight=False, soft_wrap=True)

    def _rate(self) -> float:
        return (self.done - self._first) / max(time.monotonic() - self._started, 1e-9)
