"""One picture to a uint8 image of a given size, by a fixed rule."""

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


def fit(image: Image.Image, size: int | tuple[int, int]) -> Image.Image:
    """The picture as size × size, or as (height, width): halved with a box filter while it covers twice that size, resized
    bicubically so that it just covers it, then cropped to the centre (for squares the ImageNet-64 preparation of ADM, EDM and
    CTM).

    If a picture is more than four times as long as the size's form needs, only its middle is used, three times as long. So the
    part to resize stays small, and the centre is the same to rounding."""
    rows, columns = (size, size) if isinstance(size, int) else size
    image = _without_ends(image, rows, columns)
    while image.width >= 2 * columns and image.height >= 2 * rows:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = max(columns / image.width, rows / image.height)
    width, height = max(columns, round(image.width * scale)), max(rows, round(image.height * scale))
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - columns) // 2, (height - rows) // 2
    return image.crop((left, top, left + columns, top + rows))


def _without_ends(image: Image.Image, rows: int, columns: int) -> Image.Image:
    """The middle of a picture that is long for rows × columns, with the same centre."""
    width, height = (
        _kept(*sides)
        for sides in ((image.width, image.height, columns, rows), (image.height, image.width, rows, columns))
    )
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image if (width, height) == image.size else image.crop((left, top, left + width, top + height))


def _kept(side: int, other: int, wanted: int, other_wanted: int) -> int:
    """How much of a side is used, where the other is `other` and wanted × other_wanted pixels are made."""
    if side * other_wanted <= _LONG * other * wanted:
        return side
    kept = -(-3 * other * wanted // other_wanted)
    return kept + (side - kept) % 2
