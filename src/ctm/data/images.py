"""A set of images in memory or memory-mapped, their order in training, and their conversion to [-1, 1]."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from ctm.conditioner import Arrays, Conditioner, Labels
from ctm.conditions import LABELS, Condition, is_flag_of

__all__ = ["Images", "epoch_order", "random_flips", "to_model_range"]

_FLIPS = 0x466C6970  # keeps the draws of flips apart from the order of the data


@dataclass(frozen=True)
class Images:
    """pixels uint8 (N, H, W, C), an array or a memory map; labels int64 (N,), −1 for an image without one, or None; class_names
    one for each class, empty where the data have none; name: how the set was asked for; source: where it came from, in words;
    notes: what was left out or changed on the way, a line each; fields: the arrays of the condition beside labels, float32
    (N, …) each, and under NAME_present, bool (N,), in which rows a field is there, where not in all."""

    pixels: np.ndarray
    labels: np.ndarray | None = None
    class_names: list[str] = field(default_factory=list)
    name: str = ""
    source: str = ""
    notes: tuple[str, ...] = ()
    fields: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.pixels.ndim != 4 or self.pixels.dtype != np.uint8 or len(self.pixels) == 0:
            raise ValueError(f"images must be uint8 (N, H, W, C), N ≥ 1, got {self.pixels.dtype} {self.pixels.shape}")
        if self.labels is not None and (self.labels.shape != (len(self.pixels),) or int(self.labels.min()) < -1):
            raise ValueError(
                f"labels must be {len(self.pixels)} whole numbers ≥ 0, or −1 for none, got shape {self.labels.shape}"
            )
        for name, values in self.fields.items():
            if is_flag_of(name, self.fields):
                if values.dtype != bool or values.shape != (len(self.pixels),):
                    raise ValueError(f"{name} must be bool ({len(self.pixels)},), got {values.dtype} {values.shape}")
            elif values.dtype != np.float32 or values.shape[:1] != (len(self.pixels),):
                raise ValueError(
                    f"the field {name!r} must be float32 ({len(self.pixels)}, …), got {values.dtype} {values.shape}"
                )
        largest = -1 if self.labels is None else int(self.labels.max())
        if self.class_names and largest >= len(self.class_names):
            raise ValueError(f"label {largest} has no name: there are {len(self.class_names)} names of classes")

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        _, height, width, channels = self.pixels.shape
        return channels, height, width

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

    def renumbered(self, numbers: np.ndarray, class_names: list[str]) -> Images:
        """The set with class c as number numbers[c] (C,) of `class_names`. Images without a label keep none."""
        labels = self.labels
        if labels is not None:
            labels = np.where(labels < 0, -1, numbers[np.maximum(labels, 0)])
        return replace(self, labels=labels, class_names=class_names)

    def batch(self, indices: np.ndarray) -> tuple[Tensor, Tensor | None]:
        """Images `indices` as float32 (B, C, H, W) in [-1, 1], and their labels int64 (B,) or None."""
        labels = None if self.labels is None else torch.from_numpy(self.labels[indices].astype(np.int64))
        return to_model_range(torch.from_numpy(np.ascontiguousarray(self.pixels[indices]))), labels

    def rows(self, indices: np.ndarray) -> tuple[Tensor, Condition]:
        """Images `indices` as `batch` gives them, and their condition: labels, or a mapping where the data have fields."""
        x, labels = self.batch(indices)
        return x, self.condition(indices) if self.fields else labels

    def condition(self, indices: np.ndarray) -> Condition:
        """The condition of the images `indices`: None, labels int64 (B,), or a mapping of both and of the fields."""
        labels = None if self.labels is None else torch.from_numpy(self.labels[indices].astype(np.int64))
        fields = {name: torch.from_numpy(np.ascontiguousarray(values[indices])) for name, values in self.fields.items()}
        return fields | ({} if labels is None else {LABELS: labels}) if fields else labels

    def all(self) -> tuple[Tensor, Tensor | None]:
        """All images and labels, as `batch` gives them."""
        return self.batch(np.arange(len(self)))


def to_model_range(pixels: Tensor) -> Tensor:
    """uint8 (B, H, W, C) -> float32 (B, C, H, W): v/127.5 − 1."""
    return pixels.permute(0, 3, 1, 2).float() / 127.5 - 1


def epoch_order(length: int, start: int, count: int, seed: int) -> np.ndarray:
    """Items start … start + count − 1 of an endless sequence of permutations of `length` items, one permutation for each
    epoch.

    A permutation depends on (seed, epoch) only. So the order of training data needs no state, and a continued run sees the
    same images as an unbroken run."""
    picked = []
    while count > 0:
        epoch, offset = divmod(start, length)
        picked.append(_permutation(length, seed, epoch)[offset : offset + count])
        start, count = start + len(picked[-1]), count - len(picked[-1])
    return np.concatenate(picked)


@lru_cache(maxsize=2)  # of 1.3 million images each takes 20 ms or more; a step needs one, or two
def _permutation(length: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(length)


def random_flips(count: int, seed: int, step: int) -> Tensor:
    """bool (count,), true for the rows of a step's whole batch that are mirrored, each with probability 1/2.

    A row depends on (seed, step, row) only. So a continued run, several processes and pieces of a batch see the same, and no
    other draw changes."""
    return torch.from_numpy(np.random.default_rng([_FLIPS, seed, step]).random(count) < 0.5)
