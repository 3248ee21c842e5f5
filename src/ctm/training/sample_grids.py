"""The sample grids of a training run: what they show, and when one is due."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ctm.conditions import LABELS, Condition, repeat, with_field
from ctm.data import Dataset
from ctm.models import AnyModel, ConsistencyModel
from ctm.models.protocol import can_jump
from ctm.noise import karras_grid, to_zero
from ctm.pictures import grid_picture, save_picture
from ctm.sampling import generate, heun
from ctm.teachers.pipelines import decoded, picture_shape
from ctm.training.value_pictures import value_picture

__all__ = ["GridClock", "column_condition", "column_labels", "save_sample_grid"]

_COLUMNS = 10
_POINTS = 500  # samples of vectors in a row
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


def column_condition(images: Dataset, columns: int = _COLUMNS) -> Condition:
    """The condition of each column: its class, and of data with fields the fields of the first images that have one."""
    labels = column_labels(images.num_classes, columns)
    if not images.fields:
        return labels
    rows = np.arange(columns) % len(images)
    if labels is not None and images.labels is not None:  # the first image of the column's class, where there is one
        of_class = [np.flatnonzero(images.labels == int(label)) for label in labels]
        rows = np.array([found[0] if len(found) else row for found, row in zip(of_class, rows, strict=True)])
    condition = images.condition(rows)
    return condition if labels is None else with_field(condition, LABELS, labels)


def save_sample_grid(model: AnyModel, path: Path, condition: Condition = None) -> None:
    """Ten samples a row from the same noise, each column under one condition (`column_condition`): for a CTM a row each of 1, 2,
    4 and 8 jumps (of a consistency model with fresh noise between), for a diffusion model two rows of Heun with 18 levels.
    Latents are decoded. Vectors, sequences and fields are drawn as of `ctm.training.value_pictures`, vectors many to a row.
    Nothing for other data that is no picture."""
    drawn, shape = model.scaling is not None, picture_shape(model)
    if not drawn and (len(shape) != 3 or shape[0] not in (1, 3)):
        return
    times = _POINTS // _COLUMNS if drawn and len(model.shape) == 1 else 1
    many, given = times * _COLUMNS, repeat(condition, times) if times > 1 else condition
    if can_jump(model):
        gamma = 1.0 if isinstance(model, ConsistencyModel) else 0.0
        rows = [generate(model, many, steps=steps, gamma=gamma, condition=given) for steps in (1, 2, 4, 8)]
    else:
        grid = to_zero(karras_grid(17, model.sigma_min, model.sigma_max))
        rows = [generate(model, 2 * many, condition=repeat(given, 2), grid=grid, sampler=heun)]
    if model.scaling is not None:
        rows = [row for each in rows for row in model.scaling.apply(each).split(many)]
        save_picture(value_picture(rows, _COLUMNS), path)
        return
    save_picture(grid_picture(decoded(model, torch.cat(rows)), columns=_COLUMNS), path)
