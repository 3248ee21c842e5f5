"""One picture file, opened: or a sentence why not."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, UnidentifiedImageError

__all__ = ["open_picture"]


def open_picture(file: Path) -> Image.Image:
    """The picture in a file, decoded; of several frames the first. Raises FileNotFoundError where there is no such file, and
    ValueError for one that is no picture or a damaged one."""
    if not file.exists():
        raise FileNotFoundError(f"there is no picture {file}")
    if file.is_dir():
        raise ValueError(f"{file} is a directory: give one picture file")
    try:
        image = Image.open(file)
        image.load()
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{file} cannot be read as a picture ({error}): repair or remove it") from error
    return image
