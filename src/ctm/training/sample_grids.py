"""The sample grids of a training run: what they show, and when one is due."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ctm.models import ConsistencyModel
from ctm.noise import karras_grid, to_zero
from ctm.pictures import grid_picture, save_picture
from ctm.sampling import generate, heun

__all__ = ["GridClock", "column_labels", "save_sample_grid"]

_COLUMNS = 10
_FIRST = 0.25  # of the time between two grids: until the first
_SHARE = 20  # the time between two grids is at least so many times what the last one took


class GridClock:
    """When a sample grid is due by time: first after a quarter of `minutes`, then every `minutes`. One that takes long to draw is
    drawn less often, so that grids take at most a twentieth of the time. minutes None: never."""

    def __init__(self, minutes: float | None, now: Callable[[], float] = time.monotonic) -> None:
        self._seconds, self._now = None if minutes is None else 60 * minutes, now
        self._next = None if self._seconds is None else now() + _FIRST * self._seconds

    @property
    def due(self) -> bool:
        """Whether it is time for a grid."""
        return self._next is not None and self._now() >= self._next

    def drawn(self, seconds: float) -> None:
        """A grid was drawn, for whatever reason, in that many seconds: the time to the next begins."""
        if self._seconds is not None:
            self._next = self._now() + max(self._seconds, _SHARE * seconds)


def column_labels(num_classes: int, columns: int = _COLUMNS) -> Tensor | None:
    """The class of each column (columns,): all classes in order where there are at most so many, else as many spread evenly over
    all; fewer have columns side by side. None without classes."""
    return None if num_classes == 0 else torch.arange(columns) * num_classes // columns


def save_sample_grid(model: Any, path: Path) -> None:
    """Ten samples a row from the same noise, each column of one class where there are classes: for a CTM a row each of 1, 2, 4
    and 8 jumps (of a consistency model with fresh noise between), for a diffusion model two rows of Heun with 18 levels.
    Nothing for data that is no picture."""
    if len(model.shape) != 3 or model.shape[0] not in (1, 3):
        return
    labels = column_labels(model.num_classes)
    if hasattr(model, "jump"):
        gamma = 1.0 if isinstance(model, ConsistencyModel) else 0.0
        rows = [generate(model, _COLUMNS, steps=steps, gamma=gamma, labels=labels) for steps in (1, 2, 4, 8)]
    else:
        grid = to_zero(karras_grid(17, model.sigma_min, model.sigma_max))
        two = None if labels is None else labels.repeat(2)
        rows = [generate(model, 2 * _COLUMNS, labels=two, grid=grid, sampler=heun)]
    save_picture(grid_picture(torch.cat(rows), columns=_COLUMNS), path)
