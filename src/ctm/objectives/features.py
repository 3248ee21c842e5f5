"""Distances between features of frozen networks (CTM §2.1). The feature networks are passed in; only what is done around
them stands here.

Images are (B, 3, H, W) in [−1, 1], resized to a network's input, bilinear without aligned corners as in the official code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ctm.objectives.distances import Distance

__all__ = ["IMAGENET", "Backbone", "FeatureDistance", "PerceptualDistance"]

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def _resized(images: Tensor, side: int) -> Tensor:
    return interpolate(images, size=(side, side), mode="bilinear", align_corners=False)


@dataclass(frozen=True)
class PerceptualDistance(Distance):
    """A perceptual distance such as LPIPS, called on both images at `side` pixels and mapped to [0, 1].

    distance: (a, b) in [0, 1] -> B numbers in any shape. Its networks' weights should be frozen; gradients go through it."""

    distance: Callable[[Tensor, Tensor], Tensor]
    side: int = 224

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        """(B, 3, H, W) twice -> (B,)."""
        first, second = ((_resized(images, self.side) + 1) / 2 for images in (a, b))
        return self.distance(first, second).reshape(len(a))


@dataclass(frozen=True)
class Backbone:
    """A feature network and what its input needs. features: images (B, 3, side, side) -> list of maps (B, C, h, w); mean and
    std: normalisation of images in [0, 1], for each channel."""

    features: Callable[[Tensor], Sequence[Tensor]]
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    side: int = 224

    def prepare(self, images: Tensor) -> Tensor:
        """The network's input from images in [−1, 1]: normalised, then resized."""
        mean, std = (images.new_tensor(value).reshape(1, 3, 1, 1) for value in (self.mean, self.std))
        return _resized(((images + 1) / 2 - mean) / std, self.side)

    def __call__(self, images: Tensor) -> list[Tensor]:
        """Maps whose channel vectors have length 1, of images in [−1, 1]."""
        maps = self.features(self.prepare(images))
        return [found / (found.norm(dim=1, keepdim=True) + 1e-10) for found in maps]


@dataclass(frozen=True)
class FeatureDistance(Distance):
    """|φ(a) − φ(b)|² of unit-length channel vectors, averaged over space and summed over channels, maps and backbones
    (sony/ctm, cm/karras_diffusion.py: the distance on the discriminators' feature networks)."""

    backbones: tuple[Backbone, ...]

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        """(B, 3, H, W) twice -> (B,)."""
        pairs = [pair for network in self.backbones for pair in zip(network(a), network(b), strict=True)]
        return torch.stack([(first - second).square().mean(dim=(2, 3)).sum(dim=1) for first, second in pairs]).sum(
            dim=0
        )
