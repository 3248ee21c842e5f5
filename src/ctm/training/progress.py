"""The bar of a training run: on stdout, which is the run's record in a file."""

from __future__ import annotations

from ctm.console import text_console
from ctm.progress import JobBar

__all__ = ["TrainingBar"]


class TrainingBar(JobBar):
    """Progress of `total` steps, with the losses as its note."""

    def __init__(self, title: str, total: int, done: int = 0, *, shown: bool = True) -> None:
        super().__init__(title, total, done, shown=shown, console=text_console())
