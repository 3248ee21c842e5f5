"""Batches of images as one picture."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ctm.files import whole_file

__all__ = ["grid_picture", "save_picture", "to_uint8"]

_TARGET_SIDE = 640


def to_uint8(x: Tensor) -> Tensor:
    """float (B, C, H, W) -> uint8 (B, H, W, C): (x + 1)·127.5, rounded and clamped to 0 … 255."""
    return ((x.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def grid_picture(x: Tensor, columns: int | None = None, scale: int | None = None) -> Image.Image:
    """Images (B, C, H, W) in [-1, 1], C = 1 or 3, row by row on a dark ground with a one-pixel gap, enlarged by whole
    pixels. columns: None for a square; scale: None for about 640 pixels a side. Raises ValueError for other channels."""
    if x.dim() != 4 or x.shape[1] not in (1, 3):
        raise ValueError(f"a picture shows images of 1 or 3 channels (B, C, H, W), got {tuple(x.shape)}")
    pixels = to_uint8(x.detach().cpu()).numpy()
    count, height, width, channels = pixels.shape
    columns = columns or math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    sheet = np.full((rows * (height + 1) + 1, columns * (width + 1) + 1, channels), 32, dtype=np.uint8)
    for index, image in enumerate(pixels):
        top, left = (index // columns) * (height + 1) + 1, (index % columns) * (width + 1) + 1
        sheet[top : top + height, left : left + width] = image
    picture = Image.fromarray(sheet.squeeze(-1) if channels == 1 else sheet)
    scale = scale or max(1, _TARGET_SIDE // max(sheet.shape[:2]))
    return picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)


def save_picture(picture: Image.Image, path: Path) -> None:
    """Write a PNG, whole or not at all, making its folder."""
    with whole_file(path) as temporary:
        picture.save(temporary, format="png")
