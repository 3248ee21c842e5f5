"""Distances between features of frozen networks, for matching. The feature networks are passed in; only what is done around
them stands here. Images are (B, 1 or 3, H, W) in [−1, 1]."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ctm.backbones.base import Backbone, resized
from ctm.backbones.lpips import ShiftTolerant, Trunk
from ctm.objectives.base import Networks
from ctm.objectives.distances import Distance

__all__ = ["LPIPS", "FeatureDistance", "PerceptualDistance"]


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
    (sony/ctm, cm/karras_diffusion.py: the distance on the discriminators' feature networks). With
    `ctm.backbones.TeacherEncoder` it is SoundCTM's, for data of any shape."""

    backbones: tuple[Backbone, ...]

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        """(B, …) twice, as the backbones take them -> (B,)."""
        return self.between(None, a, b)

    def between(self, networks: Networks | None, a: Tensor, b: Tensor) -> Tensor:
        total = a.new_zeros(len(a))
        for network in self.backbones:
            for x, y in zip(_unit(network.maps(networks, a)), _unit(network.maps(networks, b)), strict=True):
                total = total + (x - y).square().mean(dim=(2, 3)).sum(dim=1)
        return total


@dataclass(frozen=True)
class LPIPS(Distance):
    """Σ over five maps of the mean over space of Σ_c w_c·(φ_c(a) − φ_c(b))², φ of unit length, w trained on human judgements
    (arXiv 1801.03924), in its shift-tolerant form (2207.13686; `ctm.backbones.ShiftTolerant`): grey or colour images.

    side: pixels at which images are compared, 24 at least, 224 as in the official code; less is cheaper by its square.
    network: "vgg" or "alex". Needs the extra `lpips`: the first call raises ImportError where that is absent. ValueError
    for other settings."""

    side: int = 224
    network: Trunk = "vgg"

    def __post_init__(self) -> None:
        _ = self.trunk

    @property
    def trunk(self) -> ShiftTolerant:
        return ShiftTolerant(self.network, self.side)

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        """(B, 1 or 3, H, W) twice, in [−1, 1] -> (B,)."""
        return self.between(None, a, b)

    def between(self, networks: Networks | None, a: Tensor, b: Tensor) -> Tensor:
        trunk = self.trunk
        layers = zip(_unit(trunk.maps(networks, a)), _unit(trunk.maps(networks, b)), trunk.heads(a.device), strict=True)
        return torch.stack([((x - y).square().mean(dim=(2, 3)) @ w.to(x.dtype)) for x, y, w in layers]).sum(dim=0)


def _unit(maps: list[Tensor]) -> list[Tensor]:
    """Maps with channel vectors of length 1."""
    return [found / (found.norm(dim=1, keepdim=True) + 1e-10) for found in maps]
