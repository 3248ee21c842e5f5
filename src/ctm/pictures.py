"""Batches of images as one picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ctm.data.images import to_model_range
from ctm.files import whole_file

__all__ = ["as_saved", "check_numbers", "class_columns", "grid_picture", "save_picture", "to_uint8"]

_TARGET_SIDE = 640


def to_uint8(x: Tensor) -> Tensor:
    """float (B, C, H, W) -> uint8 (B, H, W, C): (x + 1)·127.5, rounded and clamped to 0 … 255."""
    return ((x.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def check_numbers(x: Tensor, numbers: Sequence[int] | np.ndarray | None = None) -> None:
    """Raises ValueError where an image of x (B, …) holds NaN or infinity, which a picture would show as black or white.
    numbers: of the images, for the sentence."""
    wrong = (~x.isfinite().flatten(1).all(1)).nonzero().flatten().tolist()
    if wrong:
        number = wrong[0] if numbers is None else numbers[wrong[0]]
        raise ValueError(
            f"image {number} is no numbers (NaN or infinite): a setting of the sampler is too large, or the model's "
            "weights are not finite"
        )


def as_saved(x: Tensor) -> Tensor:
    """Images (B, C, H, W) as a picture file holds them: clamped to [-1, 1], 256 values; float32."""
    return to_model_range(to_uint8(x))


def class_columns(labels: Sequence[int]) -> tuple[list[int | None], list[int]]:
    """(places, classes) of a grid with one column for each class, in the order of the classes, for images with these labels
    (B,).

    places: for each cell, row by row, the number of its image or None for an empty cell, as `grid_picture` takes them.
    classes: the class of each column. Images keep their order within a column."""
    classes = sorted(set(labels))
    members = {each: [index for index, label in enumerate(labels) if label == each] for each in classes}
    rows = zip_longest(*members.values())
    return [place for row in rows for place in row], classes


def grid_picture(
    x: Tensor, columns: int | None = None, scale: int | None = None, places: Sequence[int | None] | None = None
) -> Image.Image:
    """One picture of images (B, C, H, W) in [-1, 1], C = 1 or 3, row by row on a dark ground with a gap of one pixel,
    enlarged by whole pixels.

    columns: None for a square. scale: None for about 640 pixels a side. places: the number of the image in each cell, None
    for an empty cell; by default all images in order. Raises ValueError for other channels."""
    if x.dim() != 4 or x.shape[1] not in (1, 3):
        raise ValueError(f"a picture shows images of 1 or 3 channels (B, C, H, W), got {tuple(x.shape)}")
    pixels = to_uint8(x.detach().cpu()).numpy()
    count, height, width, channels = pixels.shape
    places = range(count) if places is None else places
    columns = columns or math.ceil(math.sqrt(len(places)))
    rows = math.ceil(len(places) / columns)
    sheet = np.full((rows * (height + 1) + 1, columns * (width + 1) + 1, channels), 32, dtype=np.uint8)
    for cell, index in enumerate(places):
        top, left = (cell // columns) * (height + 1) + 1, (cell % columns) * (width + 1) + 1
        if index is not None:
            sheet[top : top + height, left : left + width] = pixels[index]
    picture = Image.fromarray(sheet.squeeze(-1) if channels == 1 else sheet)
    scale = scale or max(1, _TARGET_SIDE // max(sheet.shape[:2]))
    return picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)


def save_picture(picture: Image.Image, path: Path) -> None:
    """Write a PNG, whole or not at all. Its folder is made."""
    with whole_file(path) as temporary:
        picture.save(temporary, format="png")
