"""Trunks and heads of shift-tolerant LPIPS (Ghildyal and Liu, ECCV 2022, arXiv 2207.13686): VGG16 or AlexNet with blurred
pooling, trained for the perceptual distance LPIPS (arXiv 1801.03924). The weights come with the package stlpips-pytorch."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from ctm.backbones.base import IMAGENET, Backbone, Channels

__all__ = ["ShiftTolerant"]

Trunk = Literal["vgg", "alex"]
_LEAST_SIDE = 24  # below it there is too little left to mirror


@dataclass(frozen=True)
class ShiftTolerant(Backbone):
    """Five maps. VGG16: 64, 128, 256, 512 and 512 channels at strides 1, 2, 4, 8 and 16. AlexNet: 64, 192, 384, 256 and 256
    channels at strides 2, 8, 16, 16 and 16.

    side: the size in pixels to which images are resized; 224 is LPIPS' own size. Needs the extra `lpips`; raises ImportError
    with what to install, ValueError for another network or a side under 24."""

    network: Trunk = "vgg"
    side: int = 224
    mean: Channels = IMAGENET[0]
    std: Channels = IMAGENET[1]

    def __post_init__(self) -> None:
        if self.network not in get_args(Trunk):
            raise ValueError(f"network must be one of {', '.join(get_args(Trunk))}, got {self.network!r}")
        if self.side < _LEAST_SIDE:
            raise ValueError(f"side must be at least {_LEAST_SIDE} pixels, got {self.side}")

    def features(self, prepared: Tensor) -> Sequence[Tensor]:
        stages, _ = _load(self.network, str(prepared.device))
        maps, hidden = [], prepared
        for stage in stages:
            hidden = stage(hidden)
            maps.append(hidden)
        return maps

    def heads(self, device: torch.device | str) -> list[Tensor]:
        """The trained non-negative weight of each channel (C,) of each map."""
        return _load(self.network, str(device))[1]


class _BlurPool(nn.Module):
    """A blur with [1, 2, 1]⊗[1, 2, 1]/16 at every second pixel, after padding by two mirrored pixels on each side."""

    kernel: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        taps = torch.tensor([1.0, 2.0, 1.0])
        self.register_buffer("kernel", (torch.outer(taps, taps) / 16).expand(channels, 1, 3, 3).clone())

    def forward(self, x: Tensor) -> Tensor:
        padded = nn.functional.pad(x, (2, 2, 2, 2), mode="reflect")
        return nn.functional.conv2d(padded, self.kernel.to(x.dtype), stride=2, groups=x.shape[1])


def _vgg() -> nn.ModuleList:
    """VGG16's thirteen convolutions. Each pooling is a maximum of 2×2 at stride 1 and a blur."""
    stages, inputs = nn.ModuleList(), 3
    for index, (channels, count) in enumerate(((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))):
        layers: list[nn.Module] = [nn.MaxPool2d(2, 1), _BlurPool(inputs)] if index else []
        for _ in range(count):
            layers += [nn.Conv2d(inputs, channels, 3, padding=1), nn.ReLU()]
            inputs = channels
        stages.append(nn.Sequential(*layers))
    return stages


def _alex() -> nn.ModuleList:
    """AlexNet's five convolutions, the first at stride 1 and blurred. Each pooling is a maximum of 3×3 at stride 1 and a
    blur."""
    return nn.ModuleList(
        [
            nn.Sequential(nn.Conv2d(3, 64, 11, padding=2), _BlurPool(64), nn.ReLU()),
            nn.Sequential(nn.MaxPool2d(3, 1), _BlurPool(64), nn.Conv2d(64, 192, 5, padding=2), nn.ReLU()),
            nn.Sequential(nn.MaxPool2d(3, 1), _BlurPool(192), nn.Conv2d(192, 384, 3, padding=1), nn.ReLU()),
            nn.Sequential(nn.Conv2d(384, 256, 3, padding=1), nn.ReLU()),
            nn.Sequential(nn.Conv2d(256, 256, 3, padding=1), nn.ReLU()),
        ]
    )


@lru_cache(maxsize=4)
def _load(network: Trunk, device: str) -> tuple[nn.ModuleList, list[Tensor]]:
    """The frozen trunk and the heads, one pair for each device. The package's code is not imported, because it needs
    torchvision."""
    found = importlib.util.find_spec("stlpips_pytorch")
    if found is None or found.origin is None:
        raise ImportError("LPIPS' weights come with a package that is not installed: pip install 'ctm-torch[lpips]'")
    file = Path(found.origin).parent / "weights" / "vST0.0" / f"{network}_shift_tolerant.pth"
    weights: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    trunk = _vgg() if network == "vgg" else _alex()
    named = iter([value for name, value in weights.items() if name.startswith("net.") and not name.endswith("filt")])
    with torch.no_grad():
        for module in trunk.modules():
            if isinstance(module, nn.Conv2d):
                module.weight.copy_(next(named))
                assert module.bias is not None
                module.bias.copy_(next(named))
    heads = [weights[f"lin{index}.model.1.weight"].flatten().to(device) for index in range(len(trunk))]
    return trunk.requires_grad_(False).eval().to(device), heads
