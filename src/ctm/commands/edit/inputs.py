"""Picture and mask files as a model's input, by the rules in docs/sampling.md."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ctm.data.files import TRAITS, open_picture
from ctm.data.images import to_model_range
from ctm.data.resize import fit, is_colour, normal_mode
from ctm.models import AnyModel

__all__ = ["for_model", "read", "small_picture", "to_fill"]

_HALF = 128
_TRACE = 0.5  # of 255: the share of a filled pixel that counts in a resized one


def read(file: str, *, masks: bool = False) -> Image.Image:
    """The picture, upright. Prints what was done to it. masks: its transparent part will be filled. Raises as
    `open_picture`."""
    picture = open_picture(Path(file))
    for trait in sorted(picture.traits - ({"transparent"} if masks else set())):
        print(f"{file} {TRAITS[trait][0]}")
    return picture.image


def for_model(image: Image.Image, file: str, model: AnyModel, *, grey: bool = False) -> Tensor:
    """The picture as (C, H, W) in [-1, 1], in the model's shape: 8 bits, alpha over white, resized and cropped to the centre
    (`ctm.data.resize`). A grey model takes the luma. grey: the luma in all channels. Prints what was changed."""
    channels, side, _ = model.shape
    if image.size != (side, side):
        print(f"{file}: {image.width}×{image.height} resized and centre-cropped to the model's {side}×{side}")
    return _tensor(fit(_mode(image, file, 1 if grey else channels), side), channels)


def small_picture(image: Image.Image, file: str, model: AnyModel) -> Tensor:
    """The picture as (C, h, w) in [-1, 1], with the model's channels and the file's own size. Raises ValueError unless it is
    smaller than the model's pictures."""
    channels, side, _ = model.shape
    sizes = f"{file} is {image.width}×{image.height} and the model's pictures {side}×{side}"
    if max(image.size) > side:
        raise ValueError(f"{sizes}: give a smaller one, or --factor, by which this one is reduced first")
    if image.size == (side, side):
        raise ValueError(f"{sizes}, so there is nothing to enlarge: give a smaller one, or --factor to reduce it first")
    if image.width != image.height:
        print(f"{file}: {image.width}×{image.height} is stretched to the square {side}×{side}")
    return _tensor(_mode(image, file, channels), channels)


def to_fill(image: Image.Image, file: str, mask_file: str | None, side: int) -> Tensor:
    """bool (1, side, side), true for pixels to fill: where the mask is white (at least 128 of 255), or, without a mask,
    where the picture is transparent (alpha under 128).

    The mask is resized and cropped like the picture. A pixel that covers any part to fill is filled. Raises ValueError for a
    mask of another size, for a picture with neither mask nor alpha, and where nothing or everything is to fill."""
    if mask_file is not None:
        mask = read(mask_file, masks=True)
        if mask.size != image.size:
            raise ValueError(
                f"the mask {mask_file} is {mask.width}×{mask.height}, but {file} is {image.width}×{image.height}: give a "
                "mask of the picture's own size"
            )
        values, name = np.asarray(normal_mode(mask, colour=False)), f"the mask {mask_file}"
        none, every = "has no white pixel (white is filled, black is kept)", "is white everywhere"
        every += " (transparent counts as white)" if _has_alpha(mask) else ""
    elif _has_alpha(image):
        values, name = 255 - np.asarray(image.convert("RGBA").getchannel("A")), file
        none, every = "has no transparent pixel (transparent is filled)", "is transparent everywhere"
    else:
        raise ValueError(f"{file} has no transparent parts: give --mask FILE, white where it is to be filled")
    filled = values >= _HALF
    if not filled.any() or filled.all():
        raise ValueError(f"{name} {every if filled.any() else none}: there is {_nothing(bool(filled.any()))}")
    shares = np.asarray(fit(Image.fromarray(filled.astype(np.float32) * 255), side))
    fill = torch.from_numpy(np.abs(shares) > _TRACE)[None]
    if not fill.any() or fill.all():
        raise ValueError(f"{name} leaves {_nothing(bool(fill.any()))} after resizing to {side}×{side} and cropping")
    return fill


def _nothing(everything: bool) -> str:
    return "nothing to keep" if everything else "nothing to fill"


def _has_alpha(image: Image.Image) -> bool:
    """Whether the file stores transparency: an alpha channel, or a transparent colour or palette entry."""
    return image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or (
        "transparency" in image.info and image.mode in ("1", "L", "P", "RGB")
    )


def _mode(image: Image.Image, file: str, channels: int) -> Image.Image:
    """The picture in mode L for one channel, in mode RGB for three."""
    if channels == 1 and is_colour(image):
        print(f"{file}: colours are taken as grey (luma)")
    return normal_mode(image, colour=channels == 3)


def _tensor(image: Image.Image, channels: int) -> Tensor:
    """The picture as (channels, H, W). One channel is repeated."""
    pixels = np.asarray(image).reshape(image.height, image.width, -1)
    return to_model_range(torch.tensor(pixels)[None])[0].expand(channels, -1, -1)
