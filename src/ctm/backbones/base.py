"""What every feature network does: it takes images, brings them to the input it expects, and gives a list of feature maps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ctm.models.protocol import Denoiser

__all__ = ["IMAGENET", "Backbone", "FunctionBackbone", "Networks", "precision_of", "resized"]

Channels = tuple[float, float, float]
IMAGENET: tuple[Channels, Channels] = (
    (0.485, 0.456, 0.406),
    (0.229, 0.224, 0.225),
)  # of images in [0, 1], for each channel


class Networks(Protocol):
    """Whom a feature network may look through: `ctm.objectives.Networks`, as this floor sees it."""

    @property
    def student(self) -> Denoiser: ...

    @property
    def teacher(self) -> Denoiser | None: ...


def resized(images: Tensor, side: int) -> Tensor:
    """(B, C, H, W) -> (B, C, side, side), bilinear without aligned corners, as in the official code."""
    if images.shape[-2:] == (side, side):
        return images
    return interpolate(images, size=(side, side), mode="bilinear", align_corners=False)


class Backbone(ABC):
    """A frozen feature network. Gradients go through it to the images; its weights have none.

    mean, std: normalisation of images in [0, 1]. side: the size in pixels to which images are resized."""

    mean: Channels
    std: Channels
    side: int

    @abstractmethod
    def features(self, prepared: Tensor) -> Sequence[Tensor]:
        """Maps (B, C, h, w), finest first, of normalised images (B, 3, side, side): the network itself."""

    def prepare(self, images: Tensor) -> Tensor:
        """The network's input for images (B, 1 or 3, H, W) in [−1, 1]: grey as three equal channels, normalised, resized.

        Raises ValueError for another number of channels."""
        if images.ndim != 4 or images.shape[1] not in (1, 3):
            raise ValueError(
                f"a feature network needs grey or colour images (B, 1 or 3, H, W), got {tuple(images.shape)}: "
                "use a distance in data space, or the teacher's own features"
            )
        mean, std = (images.new_tensor(value).reshape(1, 3, 1, 1) for value in (self.mean, self.std))
        return resized(((images + 1) / 2 - mean) / std, self.side)

    def __call__(self, images: Tensor) -> list[Tensor]:
        """Maps of images (B, 1 or 3, H, W) in [−1, 1]."""
        return list(self.features(self.prepare(images)))

    def maps(self, networks: Networks | None, images: Tensor) -> list[Tensor]:
        """Maps of images, for an objective, in the images' dtype. networks: its `ctm.objectives.Networks`, or None. The feature
        network computes in the precision in which the student's network does (`engine.precision`)."""
        with precision_of(networks, images):
            found = self(images)
        return [each.to(images.dtype) for each in found]


def precision_of(networks: Networks | None, images: Tensor) -> AbstractContextManager[object]:
    """torch.autocast as the student's network has it."""
    dtype: torch.dtype | None = getattr(getattr(networks, "student", None), "autocast", None)
    return nullcontext() if dtype is None else torch.autocast(images.device.type, dtype)


@dataclass(frozen=True)
class FunctionBackbone(Backbone):
    """A feature network from any function (B, 3, side, side) -> list of maps (B, C, h, w)."""

    function: Callable[[Tensor], Sequence[Tensor]]
    mean: Channels = (0.5, 0.5, 0.5)
    std: Channels = (0.5, 0.5, 0.5)
    side: int = 224

    def features(self, prepared: Tensor) -> Sequence[Tensor]:
        return self.function(prepared)
