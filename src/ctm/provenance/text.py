"""A claim as text in a PNG file: chunks that any viewer shows and anybody can change."""

from __future__ import annotations

import io
import re
import struct
import zlib
from collections.abc import Mapping

from PIL import Image, PngImagePlugin

from ctm.foreign.text import plain

__all__ = ["read", "write"]

PREFIX = "ctm:"
_SIGNATURE, _HEADER = b"\x89PNG\r\n\x1a\n", 33  # bytes before the second chunk
_NAME, _LONGEST = re.compile(r"[a-z][a-z0-9_]{0,39}"), 1 << 16


def write(png: bytes, fields: Mapping[str, str]) -> bytes:
    """The PNG file with one iTXt chunk `ctm:NAME` for each field, behind its header. All other bytes stay.

    fields: names of small letters, digits and _, and texts of at most 65,536 characters. Raises ValueError for others, for what
    is no PNG, and for a file that has such fields already. Sign after this: an earlier signature would not fit any more."""
    _check_png(png)
    there = set(read(png)) & set(fields)
    if there:
        raise ValueError(f"this PNG file has the text {', '.join(sorted(there))} of ctm already")
    chunks = PngImagePlugin.PngInfo()
    for name, text in fields.items():
        if not _NAME.fullmatch(name):
            raise ValueError(f"a field's name is 1 to 40 small letters, digits or _, got {plain(name)!r}")
        if not isinstance(text, str) or len(text) > _LONGEST or "\0" in text:
            raise ValueError(f"the field {name} must be a text of at most {_LONGEST} characters without zero bytes")
        chunks.add_itxt(PREFIX + name, text)
    packed = io.BytesIO()
    for kind, data, *_ in chunks.chunks:
        PngImagePlugin.putchunk(packed, kind, data)
    return png[:_HEADER] + packed.getvalue() + png[_HEADER:]


def read(png: bytes) -> dict[str, str]:
    """The fields that `write` put into a PNG file; empty if there are none. Raises ValueError for what is no PNG or cannot be
    read to its end; Pillow's limits on pixels and on text hold."""
    _check_png(png)
    try:
        with Image.open(io.BytesIO(png), formats=["PNG"]) as picture:
            texts = picture.text  # type: ignore[attr-defined]
    except (
        OSError,
        SyntaxError,
        ValueError,
        EOFError,
        struct.error,
        zlib.error,
        Image.DecompressionBombError,
    ) as error:
        raise ValueError(f"this PNG file cannot be read ({plain(str(error))})") from error
    return {str(name)[len(PREFIX) :]: str(text) for name, text in texts.items() if name.startswith(PREFIX)}


def _check_png(png: bytes) -> None:
    if not isinstance(png, bytes | bytearray) or png[:8] != _SIGNATURE or png[12:16] != b"IHDR" or len(png) < _HEADER:
        raise ValueError("the text of ctm is kept in PNG files, and this is none")
