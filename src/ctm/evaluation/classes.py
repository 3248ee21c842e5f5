"""Which classes the data share with a model or with samples, and the numbers of these classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ctm.data import Dataset, tell
from ctm.data.classes import compare_classes
from ctm.evaluation.sources import Source

__all__ = ["UNIFORM", "Renumbered", "SharedClasses", "Unlabelled", "shared_classes"]

UNIFORM = "; --labels uniform draws the classes equally often and compares no labels"


@dataclass(frozen=True)
class SharedClasses:
    """Classes that the data share with a model (or samples). to_model (D,): the model's number of each class of the data.
    to_data (M,): the data's number of each class of the model. −1 where there is none."""

    to_model: Tensor
    to_data: Tensor

    def of_model(self, labels: Tensor) -> Tensor:
        """Labels of the data (N,) in the model's numbers; −1 stays."""
        return torch.where(labels < 0, -1, self.to_model[labels.clamp(min=0)])

    @property
    def same(self) -> bool:
        """Whether data and model use the same numbers."""
        return torch.equal(self.to_model, torch.arange(len(self.to_data)))


def shared_classes(
    data: Dataset | None,
    other: Any,
    *,
    who: str = "the model",
    strict: bool = False,
    quiet: bool = False,
    remedy: str = "",
) -> SharedClasses | None:
    """The shared classes, by name if both have names. None if they cannot be compared; a line says so.

    other: a model or images, with num_classes and class_names. strict: raise ValueError for images of a class that the model
    does not know by name, where labels are taken from the data. quiet: no lines. remedy: the end of the error's sentence."""
    if data is None or data.labels is None or not getattr(other, "num_classes", 0):
        return None
    named = bool(data.class_names) and bool(getattr(other, "class_names", None))
    if not named and data.num_classes != other.num_classes:
        counts = f"the data have {data.num_classes} classes and {who} {other.num_classes}, without names"
        _say(f"labels are not compared: {counts}", data.name, quiet)
        return None
    try:
        options = {"data": data.name, "who": who, "remedy": remedy}
        numbers, line = compare_classes(data.class_names, data.labels, other, **options)
    except ValueError as error:
        if strict:
            raise
        _say(f"labels are not compared: {error}", "", quiet)
        return None
    _say(line, data.name, quiet)
    return _both_ways(numbers, data.num_classes, other.num_classes)


def _say(line: str | None, about: str, quiet: bool) -> None:
    tell([] if quiet or line is None else [line], about)


def _both_ways(numbers: np.ndarray | None, count: int, others: int) -> SharedClasses:
    to_model = torch.arange(count) if numbers is None else torch.from_numpy(numbers)
    to_data = torch.full((others,), -1)
    known = to_model >= 0
    to_data[to_model[known]] = torch.arange(count)[known]
    return SharedClasses(to_model, to_data)


@dataclass(frozen=True)
class Renumbered:
    """A source with its labels in the data's numbers. numbers (M,), −1 for a class that the data lack."""

    inner: Source
    numbers: Tensor

    @property
    def count(self) -> int:
        return self.inner.count

    def batch(self, indices: np.ndarray) -> tuple[Tensor, Tensor | None]:
        x, labels = self.inner.batch(indices)
        return x, None if labels is None else torch.where(labels < 0, -1, self.numbers[labels.clamp(min=0)])


@dataclass(frozen=True)
class Unlabelled:
    """A source whose labels say nothing about the data's classes."""

    inner: Source

    @property
    def count(self) -> int:
        return self.inner.count

    def batch(self, indices: np.ndarray) -> tuple[Tensor, Tensor | None]:
        return self.inner.batch(indices)[0], None
