"""A set of images in memory (or memory-mapped), their order in training, and the step to and from [-1, 1]."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

__all__ = ["Images", "epoch_order", "to_model_range"]


@dataclass(frozen=True)
class Images:
    """pixels uint8 (N, H, W, C), an array or a memory map; labels int64 (N,) or None; class_names one for each label;
    name: how the set was asked for; source: where it came from, in words."""

    pixels: np.ndarray
    labels: np.ndarray | None = None
    class_names: list[str] = field(default_factory=list)
    name: str = ""
    source: str = ""

    def __post_init__(self) -> None:
        if self.pixels.ndim != 4 or self.pixels.dtype != np.uint8 or len(self.pixels) == 0:
            raise ValueError(f"images must be uint8 (N, H, W, C), N ≥ 1, got {self.pixels.dtype} {self.pixels.shape}")
        if self.labels is not None and (self.labels.shape != (len(self.pixels),) or int(self.labels.min()) < 0):
            raise ValueError(f"labels must be {len(self.pixels)} whole numbers ≥ 0, got shape {self.labels.shape}")

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
        return max(len(self.class_names), int(self.labels.max()) + 1)

    def batch(self, indices: np.ndarray) -> tuple[Tensor, Tensor | None]:
        """Images `indices` as float32 (B, C, H, W) in [-1, 1], and their labels int64 (B,) or None."""
        labels = None if self.labels is None else torch.from_numpy(self.labels[indices].astype(np.int64))
        return to_model_range(torch.from_numpy(np.ascontiguousarray(self.pixels[indices]))), labels

    def all(self) -> tuple[Tensor, Tensor | None]:
        """All images and labels, as `batch` gives them."""
        return self.batch(np.arange(len(self)))


def to_model_range(pixels: Tensor) -> Tensor:
    """uint8 (B, H, W, C) -> float32 (B, C, H, W): v/127.5 − 1."""
    return pixels.permute(0, 3, 1, 2).float() / 127.5 - 1


def epoch_order(length: int, start: int, count: int, seed: int) -> np.ndarray:
    """Items start … start + count − 1 of an endless sequence of permutations of `length` items, one for each epoch, from
    (seed, epoch) alone: the order of training data needs no state, so a resumed run sees what an unbroken one does."""
    picked = []
    while count > 0:
        epoch, offset = divmod(start, length)
        order = np.random.default_rng([seed, epoch]).permutation(length)
        picked.append(order[offset : offset + count])
        start, count = start + len(picked[-1]), count - len(picked[-1])
    return np.concatenate(picked)
