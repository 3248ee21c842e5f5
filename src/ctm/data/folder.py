"""A folder of picture files, flat or with one sub-folder for each class. It is decoded once into a cache, then
memory-mapped."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from ctm.data.files import UnreadablePicture, open_picture, stores_colour
from ctm.data.images import Images
from ctm.data.notes import printable
from ctm.data.stack import Frame, Size, sides_of, what_was_done
from ctm.data.tree import find_pictures
from ctm.files import mapped_array

__all__ = ["cache_directory", "load_folder"]

_VERSION = 4
_NAMED = 20  # unreadable files that are named
_SAID_FROM = 10**9  # bytes of a cache file that a user is told of


def cache_directory() -> Path:
    """The directory for decoded folders: $CTM_CACHE, else `ctm` under $XDG_CACHE_HOME or ~/.cache. Raises ValueError where
    none of them is known."""
    own, general = os.environ.get("CTM_CACHE"), os.environ.get("XDG_CACHE_HOME")
    if own or general:
        return Path(own) if own else Path(str(general)) / "ctm"
    try:
        return Path.home() / ".cache" / "ctm"
    except RuntimeError as error:
        raise ValueError("there is no home directory to keep a cache in: set CTM_CACHE to a directory") from error


def load_folder(root: Path, size: Size | None, channels: int | None = None) -> Images:
    """The images under `root` (`ctm.data.tree.find_pictures`), resized and cropped to the centre, size × size
    or [height, width] (`ctm.data.resize.fit`).

    size: None keeps the files' own size, which must then be one square for all. channels: 1 or 3 converts; None takes colour
    if any file is in colour. The decoded pixels are cached (`cache_directory`) under a key of every file's path, size and
    time. Raises ValueError naming the files for unreadable pictures and for mixed sizes, for a folder without pictures, and
    where the cache's disk has no room."""
    tree = find_pictures(root)
    sides = None if size is None else sides_of(size)
    key_size = (
        None if sides is None else sides[0] if sides[0] == sides[1] else list(sides)
    )  # squares keep their older keys
    state = [_VERSION, key_size, channels, str(root.resolve()), _state(tree.files, root)]
    key = hashlib.sha256(json.dumps(state).encode()).hexdigest()[:32]
    cached, done = (cache_directory() / f"folder-{key}{ending}" for ending in (".npy", ".json"))
    if not (cached.is_file() and done.is_file()):
        try:
            _decode(tree.files, size, channels, cached, done)
        except UnreadablePicture as error:
            raise ValueError(f"{error}{_other_unreadable(tree.files, str(error))}") from error
    pixels = np.load(cached, mmap_mode="r")
    notes = what_was_done(
        Counter(json.loads(done.read_text(encoding="utf-8"))), len(tree.files), converted=channels is not None
    )
    if pixels.nbytes > _SAID_FROM:
        notes += (f"the decoded pictures take {pixels.nbytes / 1e9:.1f} GB on the disk, in {cached}",)
    source = f"{len(tree.files)} picture files in {root}"
    return Images(pixels, tree.labels, tree.class_names, str(root), source, (*tree.notes, *notes))


def _state(files: list[Path], root: Path) -> list[tuple[str, int, int]]:
    """(name, size, time) of every file: if they are equal, the files are the ones decoded before."""
    stats = [(file, file.stat()) for file in files]
    return [(str(file.relative_to(root)), stat.st_size, stat.st_mtime_ns) for file, stat in stats]


def _decode(files: list[Path], size: Size | None, channels: int | None, target: Path, done: Path) -> None:
    """Write all files as one uint8 array (N, H, W, C) to `target`. Write to `done` how many files were treated how (JSON,
    keys of ctm.data.files.TRAITS). Both appear only when they are whole."""
    colour = any(stores_colour(file) for file in files) if channels is None else channels == 3
    frame = Frame.like(open_picture(files[0]), str(files[0]), size, colour)
    shape = (len(files), frame.height, frame.width, frame.channels)
    _check_room(target.parent, shape)
    traits: Counter[str] = Counter()
    handle, temporary = tempfile.mkstemp(dir=target.parent, suffix=".npy")
    os.close(handle)
    try:
        pixels = mapped_array(Path(temporary), np.uint8, shape)
        with ThreadPoolExecutor() as pool:
            read = pool.map(lambda file: frame.pixels(open_picture(file), str(file)), files)
            for index, (image_pixels, treated) in enumerate(read):
                pixels[index] = image_pixels
                traits.update(treated)
        pixels.flush()
        written = Path(temporary).with_suffix(".json")
        written.write_text(json.dumps(traits), encoding="utf-8")
        os.replace(written, done)
        os.replace(temporary, target)
    finally:
        for left in (Path(temporary), Path(temporary).with_suffix(".json")):
            left.unlink(missing_ok=True)


def _other_unreadable(files: list[Path], said: str) -> str:
    """What is said of the files that cannot be read, besides the one that `said` tells of: all of them in one go, so that
    nobody meets them one by one. Empty where there are none."""

    def problem(file: Path) -> str | None:
        try:
            open_picture(file)
        except UnreadablePicture as error:
            return str(error)
        except ValueError:  # read, but refused: its own sentence comes when all can be read
            return None
        return None

    with ThreadPoolExecutor() as pool:
        found = list(zip(files, pool.map(problem, files), strict=True))
    others = [printable(str(file)) for file, told in found if told not in (None, said)]
    if not others:
        return ""
    more = f" and {len(others) - _NAMED:,} more" if len(others) > _NAMED else ""
    return f". {len(others):,} other{'s' * (len(others) > 1)} cannot be read: {', '.join(others[:_NAMED])}{more}"


def _check_room(directory: Path, shape: tuple[int, ...]) -> None:
    """Raises ValueError where the disk has no room. A memory-mapped file that cannot grow would end the process."""
    directory.mkdir(parents=True, exist_ok=True)
    needed, free = int(np.prod(shape, dtype=np.float64)), shutil.disk_usage(directory).free
    if needed > free:
        raise ValueError(
            f"the decoded pictures need {needed / 1e9:.2f} GB in {directory}, where {free / 1e9:.2f} GB are free: make room, "
            "set CTM_CACHE to another disk, or give a smaller --data.size"
        )
