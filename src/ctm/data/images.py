"""A set of images in memory or memory-mapped, their order in training, and their conversion to [-1, 1]."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from ctm.data.base import Dataset
from ctm.data.mapped import check_unchanged

__all__ = ["Images", "epoch_order", "random_flips", "to_model_range"]

_FLIPS = 0x466C6970  # keeps the draws of flips apart from the order of the data


@dataclass(frozen=True)
class Images(Dataset):
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
        self.check_condition()

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        _, height, width, channels = self.pixels.shape
        return channels, height, width

    @property
    def stored(self) -> np.ndarray:
        """The pixels, uint8 (N, H, W, C)."""
        return self.pixels

    def batch(self, indices: np.ndarray) -> tuple[Tensor, Tensor | None]:
        """Images `indices` as float32 (B, C, H, W) in [-1, 1], and their labels int64 (B,) or None."""
        check_unchanged(self.pixels)
        return to_model_range(torch.from_numpy(np.ascontiguousarray(self.pixels[indices]))), self.labels_at(indices)


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
