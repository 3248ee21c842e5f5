"""What every data set is: its length, the shape of an item, what it is conditioned on, and its batches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from ctm.conditioner import Arrays, Conditioner, Labels
from ctm.conditions import LABELS, MASK, Condition, is_flag_of
from ctm.scaling import Scaling

__all__ = ["Data", "Dataset"]

Self = TypeVar("Self", bound="Dataset")


class Data(Protocol):
    """What training asks of a data set.

    shape: of one item, without B. conditioner: what the items are conditioned on (`ctm.conditioner`). `rows` gives items as a
    model learns them, float32 (B, *shape), and their condition; row i is the same whenever it is asked for."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def conditioner(self) -> Conditioner: ...

    def __len__(self) -> int: ...

    def rows(self, indices: np.ndarray) -> tuple[Tensor, Condition]: ...


class Dataset:
    """What `ctm.data.Images` and `ctm.data.Values` share: labels, fields of a condition, names and notes.

    labels int64 (N,), −1 for an item without one, or None; class_names one for each class, empty where the data have none; name:
    how the set was asked for; source: where it came from, in words; notes: what was left out or changed on the way, a line
    each; fields: the arrays of the condition beside labels, float32 (N, …) each; under NAME_present, bool (N,), in which
    rows a field is there, where not in all; under NAME_mask, bool (N, L), which entries of a sequence count, where not all.
    A subclass is a frozen dataclass with these, and gives `shape`, `batch`, `__len__`."""

    labels: np.ndarray | None
    class_names: list[str]
    name: str
    source: str
    notes: tuple[str, ...]
    fields: Mapping[str, np.ndarray]

    def __len__(self) -> int:
        raise NotImplementedError

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one item as a model learns it, without B."""
        raise NotImplementedError

    @property
    def scaling(self) -> Scaling | None:
        """How the stored numbers become what a model learns; None for pictures, whose 0 … 255 is [-1, 1]."""
        return None

    @property
    def nbytes(self) -> int:
        """Bytes of the items as they are stored."""
        return int(self.stored.nbytes)

    @property
    def stored(self) -> np.ndarray:
        """The items as they are stored, N first."""
        raise NotImplementedError

    def batch(self, indices: np.ndarray) -> tuple[Tensor, Tensor | None]:
        """Items `indices` as a model learns them, float32 (B, *shape), and their labels int64 (B,) or None."""
        raise NotImplementedError

    def check_condition(self) -> None:
        """Raises ValueError for labels or fields that are not those of so many items."""
        count = len(self)
        if self.labels is not None and (self.labels.shape != (count,) or int(self.labels.min()) < -1):
            raise ValueError(f"labels must be {count} whole numbers ≥ 0, or −1 for none, got shape {self.labels.shape}")
        for name, values in self.fields.items():
            if is_flag_of(name, self.fields):
                wanted = (count, *(self.fields[name.removesuffix(MASK)].shape[1:2] if name.endswith(MASK) else ()))
                if values.dtype != bool or values.shape != wanted:
                    raise ValueError(f"{name} must be bool {wanted}, got {values.dtype} {values.shape}")
            elif values.dtype != np.float32 or values.shape[:1] != (count,):
                raise ValueError(f"the field {name!r} must be float32 ({count}, …), got {values.dtype} {values.shape}")
        largest = -1 if self.labels is None else int(self.labels.max())
        if self.class_names and largest >= len(self.class_names):
            raise ValueError(f"label {largest} has no name: there are {len(self.class_names)} names of classes")

    @property
    def num_classes(self) -> int:
        """Number of classes, 0 without labels."""
        if self.labels is None:
            return 0
        return len(self.class_names) or int(self.labels.max()) + 1

    @property
    def conditioner(self) -> Conditioner:
        """What the data are conditioned on: their labels and fields."""
        own = {name: values for name, values in self.fields.items() if not is_flag_of(name, self.fields)}
        fields = {name: values.shape[1:] for name, values in own.items()}
        return (Labels(self.num_classes) if self.num_classes else Conditioner()) | Arrays(fields)

    def renumbered(self: Self, numbers: np.ndarray, class_names: list[str]) -> Self:
        """The set with class c as number numbers[c] (C,) of `class_names`. Items without a label keep none."""
        labels = self.labels
        if labels is not None:
            labels = np.where(labels < 0, -1, numbers[np.maximum(labels, 0)])
        return replace(self, labels=labels, class_names=class_names)  # type: ignore[type-var]

    def without_labels(self: Self) -> Self:
        """The set without labels and names of classes."""
        return replace(self, labels=None, class_names=[])  # type: ignore[type-var]

    def rows(self, indices: np.ndarray) -> tuple[Tensor, Condition]:
        """Items `indices` as `batch` gives them, and their condition: labels, or a mapping where the data have fields."""
        x, labels = self.batch(indices)
        return x, self.condition(indices) if self.fields else labels

    def condition(self, indices: np.ndarray) -> Condition:
        """The condition of the items `indices`: None, labels int64 (B,), or a mapping of both and of the fields."""
        labels = self.labels_at(indices)
        fields = {name: torch.from_numpy(np.ascontiguousarray(values[indices])) for name, values in self.fields.items()}
        return fields | ({} if labels is None else {LABELS: labels}) if fields else labels

    def labels_at(self, indices: np.ndarray) -> Tensor | None:
        """Labels int64 (B,) of the items `indices`, None without labels."""
        return None if self.labels is None else torch.from_numpy(self.labels[indices].astype(np.int64))

    def all(self) -> tuple[Tensor, Tensor | None]:
        """All items and labels, as `batch` gives them."""
        return self.batch(np.arange(len(self)))
