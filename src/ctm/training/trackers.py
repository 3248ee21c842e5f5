"""Experiment trackers besides TensorBoard: wandb and trackio, which have one interface."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

__all__ = ["Tracker", "check_trackers", "open_trackers"]

Tracker = Literal["wandb", "trackio"]


def check_trackers(names: Sequence[Tracker]) -> None:
    """Raises ValueError naming the package that a tracker needs where it cannot be imported."""
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise ValueError(
                f"the tracker {name} needs the package {name}: pip install 'ctm-torch[{name}]', or take it out of trackers"
            ) from error


def open_trackers(names: Sequence[Tracker], title: str, directory: Path, settings: Mapping[str, object]) -> list[Any]:
    """A run in the project "ctm" of each, with the recipe as its configuration: objects with log(values, step=) and finish().

    A training run that goes on is a new run of theirs in the group `title`. wandb keeps its files in the run directory."""
    runs = []
    for name in names:
        own = {"dir": str(directory)} if name == "wandb" else {}
        module = importlib.import_module(name)
        runs.append(module.init(project="ctm", group=title, config=dict(settings), **own))
    return runs
