"""DINOv2 (arXiv 2304.07193) as a feature network, through the transformers library. The features are the class token after
the last normalisation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from ctm.hub import asking_hub

__all__ = ["MODEL", "Dino", "load_dino"]

MODEL = "facebook/dinov2-large"  # the size that the comparison of feature networks (arXiv 2306.04675) recommends
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_SIDE = 224


class Dino(nn.Module):
    """Features (B, F) of images (B, 1 or 3, H, W) in [−1, 1]. model: a transformers Dinov2Model. side: a multiple of its
    patch. Raises ValueError for another side."""

    def __init__(self, model: Any, side: int = _SIDE) -> None:
        super().__init__()
        patch = int(model.config.patch_size)
        if side < patch or side % patch:
            raise ValueError(
                f"DINOv2 looks at patches of {patch}×{patch} pixels: --side must be a multiple, got {side}"
            )
        self.model, self.side, self.num_features = model.eval(), side, int(model.config.hidden_size)

    def prepare(self, images: Tensor) -> Tensor:
        """Images (B, 3, side, side), normalised as in its training."""
        pixels = interpolate(
            images.float().expand(-1, 3, -1, -1), (self.side, self.side), mode="bicubic", antialias=True
        )
        mean, std = (torch.tensor(values).to(pixels)[:, None, None] for values in (_MEAN, _STD))
        return ((pixels.clamp(-1, 1) + 1) / 2 - mean) / std

    def forward(self, images: Tensor) -> Tensor:
        return self.model(pixel_values=self.prepare(images)).last_hidden_state[:, 0]


def load_dino(side: int | None = None, name: str = MODEL) -> Dino:
    """The network from the hub, its cache or a directory. Raises ImportError without transformers, and FileNotFoundError
    where the weights are not available, ValueError where some are missing. Each error says what to do."""
    try:
        from transformers import Dinov2Model
    except ImportError as error:
        raise ImportError("--features dinov2 needs transformers: pip install 'ctm-torch[dinov2]'") from error
    try:
        with asking_hub():
            kind: Any = Dinov2Model
            model, told = kind.from_pretrained(name, trust_remote_code=False, output_loading_info=True)
    except (OSError, RuntimeError) as error:
        raise FileNotFoundError(
            f"the weights {name} are neither in the hub's cache nor to be fetched ({str(error).splitlines()[0]}): fetch "
            f"them with `hf download {name}` where there is a network, or use --features efficientnet"
        ) from error
    if told["missing_keys"]:
        raise ValueError(
            f"{len(told['missing_keys'])} tensors of DINOv2 are not in the weights {name}: fetch them again"
        )
    return Dino(model, side or _SIDE)
