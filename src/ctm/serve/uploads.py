"""Pictures that users send: looked at before they are decoded, decoded within bounds, and brought to the model's shape."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ctm.data.files import open_picture
from ctm.data.images import to_model_range
from ctm.data.resize import fit, normal_mode
from ctm.models import AnyModel

__all__ = ["MOST_PIXELS", "Upload", "for_model", "read_upload", "screened_pixels", "to_fill"]

MOST_PIXELS = 4096 * 4096
_PNG, _PNG_END = b"\x89PNG\r\n\x1a\n", b"\0\0\0\0IEND\xaeB`\x82"
_TRACE = 0.5  # of 255: the share of a pixel to edit that counts in a resized one


@dataclass(frozen=True)
class Upload:
    """A picture that was decoded, upright. name: the field it came in."""

    image: Image.Image
    name: str


def read_upload(content: bytes, name: str) -> Upload:
    """The picture in an upload: PNG, JPEG or WebP, whatever the sender calls it.

    Raises ValueError for anything else, for a file that goes on after its picture (it may be a second file in the first), for
    more than 4096 · 4096 pixels, which are not decoded, and for a damaged file."""
    kind = _kind(content)
    if kind is None:
        raise ValueError(f"{name} must be a PNG, JPEG or WebP picture, whole and with nothing after it")
    try:
        with Image.open(io.BytesIO(content), formats=[kind]) as head:
            width, height = head.size
    except Image.DecompressionBombError as error:
        raise ValueError(f"{name} has more than {MOST_PIXELS:,} pixels: reduce it") from error
    except Exception as error:  # Pillow meets damaged files with errors of many kinds
        raise ValueError(f"{name} is no whole {kind} picture") from error
    if width * height > MOST_PIXELS:
        raise ValueError(f"{name} is {width}×{height}, more than {MOST_PIXELS:,} pixels: reduce it")
    return Upload(open_picture(content, name).image, name)


def _kind(content: bytes) -> str | None:
    """The format that the first bytes and the end say."""
    if content.startswith(_PNG) and content.endswith(_PNG_END) and content.count(_PNG_END) == 1:
        return "PNG"
    if content.startswith(b"\xff\xd8\xff") and content.rstrip(b"\0").endswith(b"\xff\xd9"):
        return "JPEG"
    size = int.from_bytes(content[4:8], "little") + 8
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP" and size == len(content):
        return "WEBP"
    return None


def screened_pixels(upload: Upload) -> np.ndarray:
    """The upload as filters see it: uint8 (H, W, 3)."""
    return np.asarray(normal_mode(upload.image, colour=True))


def for_model(upload: Upload, model: AnyModel) -> Tensor:
    """The picture as (C, H, W) in [−1, 1], in the model's shape: alpha over white, resized and cropped to the centre; luma for a
    grey model. Raises ValueError for a model whose samples are no square pictures."""
    channels, side = picture_shape(model)
    pixels = np.asarray(fit(normal_mode(upload.image, colour=channels == 3), side)).reshape(side, side, -1)
    return to_model_range(torch.tensor(pixels)[None])[0].expand(channels, -1, -1)


def picture_shape(model: AnyModel) -> tuple[int, int]:
    """(channels, side) of a model of square pictures. Raises ValueError for another."""
    shape: Sequence[int] = model.shape
    if len(shape) != 3 or shape[0] not in (1, 3) or shape[1] != shape[2]:
        raise ValueError(
            f"uploads need a model of square pictures with 1 or 3 channels, and this one has shape {tuple(shape)}"
        )
    return shape[0], shape[1]


def to_fill(image: Upload, mask: Upload | None, side: int) -> Tensor:
    """bool (1, side, side), true for pixels to edit: where the mask, or without one the picture itself, is transparent (alpha
    0 … 127). A pixel of the model that covers any part to edit is edited.

    Raises ValueError for a mask of another size, for one without alpha, and where nothing or everything is to be edited."""
    source = image if mask is None else mask
    if source.image.size != image.image.size:
        sizes = [f"{width}×{height}" for width, height in (source.image.size, image.image.size)]
        raise ValueError(f"the mask is {sizes[0]} and the picture {sizes[1]}: give a mask of the picture's size")
    if "A" not in source.image.getbands() and "transparency" not in source.image.info:
        what = "the picture has no transparent part: give a mask" if mask is None else "the mask has no alpha channel"
        raise ValueError(f"{what}, transparent (alpha 0) where the picture is to be edited")
    filled = np.asarray(source.image.convert("RGBA").getchannel("A")) < 128
    shares = np.asarray(fit(Image.fromarray(filled.astype(np.float32) * 255), side))
    fill = torch.from_numpy(np.abs(shares) > _TRACE)[None]
    if not fill.any() or fill.all():
        which = "everything: nothing is kept" if fill.any() else "nothing: make the part to edit transparent"
        raise ValueError(f"by the {source.name}'s alpha there is to edit {which}")
    return fill
