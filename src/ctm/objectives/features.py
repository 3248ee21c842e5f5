"""Distances between features of frozen networks (CTM §2.1). The feature networks are passed in; only what is done around
them stands here. Images are (B, 1 or 3, H, W) in [−1, 1]."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ctm.backbones.base import Backbone, resized
from ctm.objectives.distances import Distance

__all__ = ["FeatureDistance", "PerceptualDistance"]


@dataclass(frozen=True)
class PerceptualDistance(Distance):
    """A perceptual distance such as LPIPS, called on both images at `side` pixels and mapped to [0, 1].

    distance: (a, b) in [0, 1] -> B numbers in any shape. Its networks' weights should be frozen; gradients go through it."""

    distance: Callable[[Tensor, Tensor], Tensor]
    side: int = 224

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        """(B, 3, H, W) twice -> (B,)."""
        first, second = ((resized(images, self.side) + 1) / 2 for images in (a, b))
        return self.distance(first, second).reshape(len(a))


@dataclass(frozen=True)
class FeatureDistance(Distance):
    """|φ(a) − φ(b)|² of unit-length channel vectors, averaged over space and summed over channels, maps and backbones
    (sony/ctm, cm/karras_diffusion.py: the distance on the discriminators' feature networks)."""

    backbones: tuple[Backbone, ...]

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        """(B, 3, H, W) twice -> (B,)."""
        pairs = [pair for network in self.backbones for pair in zip(_unit(network(a)), _unit(network(b)), strict=True)]
        return torch.stack([(first - second).square().mean(dim=(2, 3)).sum(dim=1) for first, second in pairs]).sum(
            dim=0
        )


def _unit(maps: list[Tensor]) -> list[Tensor]:
    """Maps with channel vectors of length 1."""
    return [found / (found.norm(dim=1, keepdim=True) + 1e-10) for found in maps]
