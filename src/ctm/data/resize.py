"""One picture to a square uint8 image, by a fixed rule."""

from __future__ import annotations

import numpy as np
from PIL import Image

__all__ = ["fit", "is_colour", "normal_mode"]

_LONG = 4  # sides of one picture, from whose ratio on its ends are cut before it is resized
_GREY_MODES = ("1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "I;16N", "F")


def is_colour(image: Image.Image) -> bool:
    """Whether the file stores colour: any mode except grey. A palette counts as colour unless all its entries are grey."""
    if image.mode in _GREY_MODES:
        return False
    if image.mode == "P" and image.palette is not None:
        used = np.asarray(image.convert("RGBA")).reshape(-1, 4)[:, :3]
        return bool((used != used[:, :1]).any())
    return True


def normal_mode(image: Image.Image, colour: bool) -> Image.Image:
    """The picture in mode L or RGB. 16-bit grey is divided by 257, alpha is laid over white, palettes and CMYK are expanded."""
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image).astype(np.float64) / 257).round().clip(0, 255).astype(np.uint8))
    if image.mode in ("LA", "La", "RGBA", "RGBa", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB" if colour else "L")


def fit(image: Image.Image, size: int) -> Image.Image:
    """The picture as size × size: halved with a box filter while the shorter side is at least 2·size, resized bicubically so
    that the shorter side is `size`, then cropped to the centre (the ImageNet-64 preparation of ADM, EDM and CTM).

    If a picture is more than four times as long as it is wide, only its middle is used, three times as long as the shorter
    side. So the part to resize stays small, and the centre is the same to rounding."""
    image = _without_ends(image)
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    width, height = max(size, round(image.width * scale)), max(size, round(image.height * scale))
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    return image.crop((left, top, left + size, top + size))


def _without_ends(image: Image.Image) -> Image.Image:
    """The middle of a long picture, with the same centre."""
    shorter, longer = min(image.size), max(image.size)
    if longer <= _LONG * shorter:
        return image
    kept = 3 * shorter + (longer - 3 * shorter) % 2
    start = (longer - kept) // 2
    if image.width > image.height:
        return image.crop((start, 0, start + kept, image.height))
    return image.crop((0, start, image.width, start + kept))
