"""DeiT through timm: the second feature network of CTM's discriminator (arXiv 2310.02279). timm downloads its weights."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from torch import Tensor

from ctm.backbones.base import IMAGENET, Backbone, Channels
from ctm.hub import asking_hub

__all__ = ["DeiT"]

_MAPS = 4  # blocks 3, 6, 9 and 12 of 12: StyleGAN-XL's hooks
_PATCH = 16


@dataclass(frozen=True)
class DeiT(Backbone):
    """Four maps of (side/16)² positions: the patch tokens after a quarter, half, three quarters and all of a vision
    transformer's blocks. Class and distillation tokens are left out.

    model: timm's name of a network with patches of 16 pixels. side: the size in pixels to which images are resized, a
    multiple of 16; timm fits the position embedding if it is not 224. pretrained: false keeps random weights. Needs the
    extra `deit`: the first call raises ImportError with what to install. Raises ValueError for another side."""

    model: str = "deit_base_distilled_patch16_224"
    side: int = 224
    pretrained: bool = True
    mean: Channels = IMAGENET[0]
    std: Channels = IMAGENET[1]

    def __post_init__(self) -> None:
        if self.side < _PATCH or self.side % _PATCH:
            raise ValueError(f"DeiT sees patches of 16 pixels: side must be a multiple of 16, got {self.side}")

    def features(self, prepared: Tensor) -> Sequence[Tensor]:
        network = _network(self.model, self.side, self.pretrained, str(prepared.device))
        depth = len(network.blocks)
        taken = [(index + 1) * depth // _MAPS - 1 for index in range(_MAPS)]
        return network.forward_intermediates(prepared, indices=taken, intermediates_only=True)


@lru_cache(maxsize=2)
def _network(model: str, side: int, pretrained: bool, device: str) -> Any:
    """The frozen network, one for each setting and device."""
    try:
        import timm
    except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision that does not fit torch
        raise ImportError(
            f"DeiT comes with timm, which cannot be imported here ({error}): pip install 'ctm-torch[deit]', with the torchvision "
            "that fits torch, or leave DeiT out of `backbones`"
        ) from error
    with asking_hub() if pretrained else nullcontext():
        network = timm.create_model(model, pretrained=pretrained, img_size=side, num_classes=0)
    return network.requires_grad_(False).eval().to(device)
