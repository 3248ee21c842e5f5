"""Sources of images to evaluate: a model under a sampler, or a set of images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ctm.conditions import Condition, labels_of, rows
from ctm.data import Dataset, Images, epoch_order
from ctm.models.protocol import Denoiser
from ctm.sampling import draw

__all__ = ["ImageSource", "ModelSource", "Source", "data_labels", "label_rows"]


_LABELS = 2**32  # added to the seed of the order of labels


class Source(Protocol):
    """`count` images. Image i is the same whenever it is asked for, and in whatever batch."""

    @property
    def count(self) -> int: ...

    def batch(self, indices: np.ndarray) -> tuple[Tensor, Tensor | None]:
        """Images float32 (B, C, H, W), about in [−1, 1], and labels int64 (B,) on the CPU, or None."""


@dataclass(frozen=True)
class ImageSource:
    """The first `count` images of a set, in an order drawn once from `seed`. So the order of a set that is sorted by class
    does not matter."""

    images: Images
    count: int
    seed: int = 0

    @cached_property
    def numbers(self) -> np.ndarray:
        """The set's own number of each image."""
        return epoch_order(len(self.images), 0, self.count, self.seed)

    def batch(self, indices: np.ndarray) -> tuple[Tensor, Tensor | None]:
        return self.images.batch(self.numbers[indices])


@dataclass(frozen=True)
class ModelSource:
    """Samples of a model. Image i depends on (seed, i) only, as in ctm.generate."""

    model: Denoiser
    count: int
    levels: Tensor
    sampler: Callable[..., Tensor]
    condition: Condition
    seed: int
    device: torch.device

    def batch(self, indices: np.ndarray) -> tuple[Tensor, Tensor | None]:
        condition = rows(self.condition, torch.from_numpy(indices))
        x = draw(
            self.model,
            indices.tolist(),
            levels=self.levels,
            sampler=self.sampler,
            condition=condition,
            seed=self.seed,
            device=self.device,
        )
        return x, labels_of(condition)


def data_labels(images: Dataset, count: int, seed: int) -> Tensor | None:
    """A label for each of count samples, as often as in the data; None for data without labels. They are the labels of as
    many images in a drawn order, which is not the order in which the data are looked at."""
    if images.labels is None:
        return None
    return torch.from_numpy(images.labels[label_rows(images, count, seed)].astype(np.int64))


def label_rows(images: Dataset, count: int, seed: int) -> np.ndarray:
    """The number of the image whose label, and whose fields of a condition, each of `count` samples has: int64 (count,)."""
    return epoch_order(len(images), 0, count, _LABELS + seed)
