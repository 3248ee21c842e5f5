"""Tables and the picture of `ctm bench teach`, from its results alone."""

from __future__ import annotations

from pathlib import Path

from ctm.bench.results import Results

__all__ = ["report"]


def report(results: Results, *, picture: Path) -> list[str]:
    """The tables in Markdown, line by line."""
    return [f"{name}" for name in results.entries]
