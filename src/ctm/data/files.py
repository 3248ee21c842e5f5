"""One picture file, decoded and upright, with 8 or 16 bits; or a sentence that says why not."""

from __future__ import annotations

import importlib.util
import io
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import numpy as np
from PIL import Image, ImageFile, ImageOps, features

from ctm.data.notes import printable
from ctm.data.resize import is_colour
from ctm.foreign.text import plain

__all__ = ["EXTENSIONS", "TRAITS", "Picture", "needed_bytes", "open_picture", "stores_colour"]

_AVIF = importlib.util.find_spec("PIL.AvifImagePlugin") is not None and bool(features.check("avif"))
EXTENSIONS = frozenset({".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}) | (
    {".avif"} if _AVIF else set()
)
_FORMATS = ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM", *(["AVIF"] if _AVIF else [])]
"""What a file's content may be, whatever its name: formats that Pillow decodes itself (it gives EPS to another program)."""
_LARGE = 2**24  # pixels of a picture that is decoded alone, so that several threads do not hold such pictures at once
_ALONE = Lock()
_BESIDE, _OF_PIXEL = 1 << 20, 16  # bytes of a picture file beside its pixels, and of a pixel: four channels of 32 bits
_ORIENTATION = 0x0112
_INT_RANGE = 65535
_SIXTEEN = (";16B", ";16L", ";16N")  # how Pillow calls channels of 16 bits, which it reads as 8 but for grey

TRAITS = {  # what is done to a picture, as said of one and of several
    "grey": ("is grey: read as colour", "are grey: read as colour"),
    "transparent": ("has transparent parts: laid over white", "have transparent parts: laid over white"),
    "turned": ("is turned upright by its EXIF orientation", "are turned upright by their EXIF orientation"),
    "frames": (
        "holds several pictures (animated, or pages): the first is taken",
        "hold several pictures (animated, or pages): the first is taken",
    ),
    "deep": ("has 16 bits: read as 8", "have 16 bits: read as 8"),
    "unit": ("holds floats within [0, 1]: read as 0 … 255", "hold floats within [0, 1]: read as 0 … 255"),
    "cropped": ("is not square: cropped to its centre", "are not square: cropped to their centre"),
    "enlarged": ("is smaller than data.size: enlarged", "are smaller than data.size: enlarged"),
}


@dataclass(frozen=True)
class Picture:
    """image: decoded and upright, in a mode with at most 16 bits. traits: what was done to it, keys of TRAITS."""

    image: Image.Image
    traits: frozenset[str] = frozenset()


def open_picture(source: Path | bytes, name: str | None = None) -> Picture:
    """The picture in a file or in a file's bytes. Of several frames it is the first. name: what errors call it.

    EXIF orientation is applied. Floats within [0, 1] become 0 … 255. Raises FileNotFoundError where there is no such file.
    Raises ValueError for a file that is no picture or is damaged, for more pixels than PIL.Image.MAX_IMAGE_PIXELS (89
    million), and for numbers whose range the file does not tell."""
    name = printable(name or str(source))
    if isinstance(source, Path) and not source.exists():
        raise FileNotFoundError(f"there is no picture {name}")
    if isinstance(source, Path) and source.is_dir():
        raise ValueError(f"{name} is a directory: give one picture file")
    try:
        with _opened(source, name) as image, _ALONE if image.width * image.height > _LARGE else nullcontext():
            return _decoded(image, name)
    except _Refused:
        raise
    except Exception as error:  # Pillow meets damaged files with errors of many kinds
        raise UnreadablePicture(
            f"{name} cannot be read as a picture ({_reason(error)}): repair or remove it"
        ) from error


def stores_colour(source: Path | bytes, name: str | None = None) -> bool:
    """Whether a picture is in colour (`ctm.data.resize.is_colour`). The head of its file is read, and more only if that does
    not tell. Raises as `open_picture`."""
    try:
        with _opened(source, name or str(source)) as image:
            if image.mode != "P":
                return is_colour(image)
    except Exception:  # it has a sentence when it is decoded
        return is_colour(open_picture(source, name).image)
    return is_colour(open_picture(source, name).image)


def needed_bytes(head: bytes, name: str) -> int:
    """The most bytes that a picture file needs, by the size of the picture that its head tells: 16 a pixel, and 1 MB. Raises
    UnreadablePicture where the head does not tell."""
    try:
        with _opened(head, name) as image:
            return _BESIDE + _OF_PIXEL * image.width * image.height
    except _Refused:
        raise
    except Exception as error:
        raise UnreadablePicture(f"{printable(name)} begins as no picture that is read here: remove it") from error


class UnreadablePicture(ValueError):
    """A file that is no picture, or a damaged one."""


class _Refused(ValueError):
    """A picture that could be read, but must not be."""


def _opened(source: Path | bytes, name: str) -> ImageFile.ImageFile:
    """The picture before its pixels are decoded."""
    limit = Image.MAX_IMAGE_PIXELS
    try:
        image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=_FORMATS)
    except Image.DecompressionBombError as error:
        raise _Refused(f"{name} has more than {2 * (limit or 0):,} pixels: reduce or remove it") from error
    if limit is not None and image.width * image.height > limit:
        sides = f"{image.width}×{image.height}"
        image.close()
        raise _Refused(f"{name} is {sides}, more than {limit:,} pixels: reduce or remove it")
    return image


def _decoded(image: ImageFile.ImageFile, name: str) -> Picture:
    traits = {"frames"} if getattr(image, "is_animated", False) else set()
    traits |= {"deep"} if any(order in str(tile[3]) for tile in image.tile for order in _SIXTEEN) else set()
    orientation = image.getexif().get(_ORIENTATION, 1)
    if image.format == "TIFF" and orientation in range(5, 9) and any(tile[0] == "raw" for tile in image.tile):
        raise _Refused(  # Pillow 12 decodes rows of the wrong length there
            f"{name} is an uncompressed TIFF that is to be turned by its orientation, which cannot be read rightly: save it "
            "upright, or as PNG"
        )
    image.load()
    upright: Image.Image = ImageOps.exif_transpose(image)
    traits |= {"turned"} if orientation in range(2, 9) else set()
    if upright.mode == "F":
        upright, traits = _from_floats(upright, name), traits | {"unit"}
    elif upright.mode == "I":
        low, high = upright.getextrema()
        if image.format == "TIFF" or low < 0 or high > _INT_RANGE:  # type: ignore[operator]
            raise _Refused(
                f"{name} holds 32-bit numbers from {low} to {high}, whose range the file does not tell: save it with 8 or 16 bits"
            )
    traits |= {"deep"} if upright.mode.startswith("I") else set()
    if "A" in upright.getbands() or "transparency" in upright.info:
        alpha = upright.convert("RGBA").getchannel("A").getextrema()[0]
        traits |= {"transparent"} if alpha < 255 else set()  # type: ignore[operator]
    return Picture(upright.copy() if upright is image else upright, frozenset(traits))


def _from_floats(image: Image.Image, name: str) -> Image.Image:
    """The picture with 8 bits, from floats within [0, 1]."""
    values = np.asarray(image)
    if not np.isfinite(values).all() or values.min() < 0 or values.max() > 1:
        raise _Refused(
            f"{name} holds floats from {values.min():g} to {values.max():g}: only floats within [0, 1] have a known range: "
            "scale them to it, or save the picture with 8 or 16 bits"
        )
    return Image.fromarray((values * 255).round().astype(np.uint8))


def _reason(error: Exception) -> str:
    """Pillow's message without the address of a buffer."""
    text = plain(str(error), 200) or type(error).__name__
    return "no picture format that is read here" if "cannot identify image file" in text else text
