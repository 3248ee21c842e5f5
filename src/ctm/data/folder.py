"""A folder of picture files: one sub-folder for each class, or flat. Decoded once into a cache, then memory-mapped."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from ctm.data.files import open_picture
from ctm.data.images import Images
from ctm.data.resize import fit, is_colour, normal_mode
from ctm.files import mapped_array

__all__ = ["cache_directory", "load_folder"]

EXTENSIONS = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"})
_VERSION = 1


def cache_directory() -> Path:
    """Where decoded folders are kept: $CTM_CACHE, else ctm under $XDG_CACHE_HOME or ~/.cache. Raises ValueError where none of
    them tells."""
    own, general = os.environ.get("CTM_CACHE"), os.environ.get("XDG_CACHE_HOME")
    if own or general:
        return Path(own) if own else Path(str(general)) / "ctm"
    try:
        return Path.home() / ".cache" / "ctm"
    except RuntimeError as error:
        raise ValueError("there is no home directory to keep a cache in: set CTM_CACHE to a directory") from error


def load_folder(root: Path, size: int | None, channels: int | None = None) -> Images:
    """The images under `root`, resized and centre-cropped to size × size (see `ctm.data.resize.fit`).

    Pictures in sub-folders are labelled by their folder, in the order of the names; pictures directly in `root` have no
    label; other files are left alone. size None keeps the files' own size, which must then be one square. channels: 1 or 3
    converts, None takes what all files have. The decoded pixels are cached (`cache_directory`) under a key made of every
    file's path, size and time. Raises ValueError naming the file for an unreadable picture, mixed channels or sizes, and
    for a folder without pictures.
    """
    files, labels, class_names = _find(root)
    key = hashlib.sha256(json.dumps([_VERSION, size, channels, str(root.resolve()), _state(files, root)]).encode())
    cached = cache_directory() / f"folder-{key.hexdigest()[:32]}.npy"
    if not cached.is_file():
        _decode(files, size, channels, cached)
    pixels = np.load(cached, mmap_mode="r")
    return Images(pixels, labels, class_names, name=str(root), source=f"{len(files)} picture files in {root}")


def _find(root: Path) -> tuple[list[Path], np.ndarray | None, list[str]]:
    """Files in order, their labels, and the class names."""
    flat = _pictures(root.iterdir())
    folders = sorted(d for d in root.iterdir() if d.is_dir() and not d.name.startswith("."))
    by_class = {d.name: _pictures(d.rglob("*")) for d in folders}
    by_class = {name: files for name, files in by_class.items() if files}
    if flat and by_class:
        raise ValueError(
            f"{root} holds pictures both directly ({flat[0].name}) and in sub-folders ({next(iter(by_class))}): "
            "put all of them in one sub-folder for each class, or all directly in it"
        )
    if flat:
        return flat, None, []
    if not by_class:
        kinds = ", ".join(sorted(e[1:] for e in EXTENSIONS))
        raise ValueError(f"{root} holds no pictures: files ending in {kinds} are looked for, flat or in sub-folders")
    files = [file for files in by_class.values() for file in files]
    labels = np.repeat(np.arange(len(by_class)), [len(files) for files in by_class.values()])
    return files, labels, list(by_class)


def _pictures(paths: Iterable[Path]) -> list[Path]:
    return sorted(p for p in paths if p.suffix.lower() in EXTENSIONS and not p.name.startswith(".") and p.is_file())


def _state(files: list[Path], root: Path) -> list[tuple[str, int, int]]:
    """What tells whether the files are those decoded before."""
    stats = [(file, file.stat()) for file in files]
    return [(str(file.relative_to(root)), stat.st_size, stat.st_mtime_ns) for file, stat in stats]


def _decode(files: list[Path], size: int | None, channels: int | None, target: Path) -> None:
    """Write all files as one uint8 array (N, H, W, C) to `target`, which appears only when whole."""
    first = open_picture(files[0])
    colour = is_colour(first) if channels is None else channels == 3
    if size is None and first.width != first.height:
        raise ValueError(
            f"{files[0]} is {first.width}×{first.height}, not square: give --data.size, to which pictures are "
            "resized and centre-cropped"
        )
    side = first.width if size is None else size

    def read(file: Path) -> np.ndarray:
        image = open_picture(file)
        if channels is None and is_colour(image) != colour:
            kinds = ("grey", "in colour") if colour else ("in colour", "grey")
            raise ValueError(
                f"{file} is {kinds[0]} but {files[0]} is {kinds[1]}: mixed channels need --data.channels 1 or 3, "
                "to which all are converted"
            )
        if size is None and image.size != (side, side):
            raise ValueError(
                f"{file} is {image.width}×{image.height} but {files[0]} is {side}×{side}: give --data.size, to which "
                "pictures are resized and centre-cropped"
            )
        return np.asarray(fit(normal_mode(image, colour), side)).reshape(side, side, 3 if colour else 1)

    target.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=target.parent, suffix=".npy")
    os.close(handle)
    try:
        shape = (len(files), side, side, 3 if colour else 1)
        pixels = mapped_array(Path(temporary), np.uint8, shape)
        with ThreadPoolExecutor() as pool:
            for index, image_pixels in enumerate(pool.map(read, files)):
                pixels[index] = image_pixels
        pixels.flush()
        os.replace(temporary, target)
    finally:
        Path(temporary).unlink(missing_ok=True)
