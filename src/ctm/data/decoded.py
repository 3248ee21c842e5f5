"""Many picture files decoded once, by all cores, into one memory-mapped file of the cache."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from ctm.data.files import UnreadablePicture, open_picture, stores_colour
from ctm.data.kept import read_kept, write_traits
from ctm.data.notes import main_process, printable
from ctm.data.stack import Frame, Size, sides_of, what_was_done
from ctm.files import mapped_array, sync
from ctm.progress import JobBar

__all__ = ["CacheFile", "Decoded", "PictureFiles", "cache_directory", "decoded"]

_VERSION = 4
_NAMED = 20  # unreadable files that are named
_SAID_FROM = 10**9  # bytes of a cache file that a user is told of
_CHUNK = 1024  # files that are decoded before the next are begun, so that few decoded pictures wait in memory


class PictureFiles(Protocol):
    """Picture files in order. state: of each file, (name, size, time), equal where nothing changed."""

    @property
    def place(self) -> Path: ...

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """What errors call file `index`."""

    def content(self, index: int) -> Path | bytes:
        """The file, or its bytes."""

    def state(self) -> Iterator[tuple[str, int, int]]: ...


@dataclass(frozen=True)
class Decoded:
    """pixels uint8 (N, H, W, C), memory-mapped; notes: what was done to the pictures."""

    pixels: np.ndarray
    notes: tuple[str, ...]


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


@dataclass(frozen=True)
class CacheFile:
    """A file of decoded pictures in the cache, uint8 (N, H, W, C), and beside it how many were treated how (JSON, keys of
    ctm.data.files.TRAITS)."""

    pixels: Path
    traits: Path

    @classmethod
    def named(cls, name: str) -> CacheFile:
        """name: a digest of all that decides the pixels."""
        return cls(cache_directory() / f"{name}.npy", cache_directory() / f"{name}.json")

    def write(self, shape: tuple[int, ...], fill: Callable[[np.ndarray], Counter[str]]) -> None:
        """Have `fill` write all pixels to an array of that shape, and say how many were treated how. Both files appear only when
        they are whole; what a killed process left of the same build is removed. Raises ValueError where the disk has no room."""
        _check_room(self.pixels.parent, shape)
        _remove_abandoned(self.pixels)
        own = f"{self.pixels.stem}.{socket.gethostname()}-{os.getpid()}.partial.npy"
        temporary = self.pixels.with_name(own)
        written = temporary.with_suffix(".json")
        try:
            pixels = mapped_array(temporary, np.uint8, shape)
            traits = fill(pixels)
            pixels.flush()
            write_traits(written, traits)
            os.replace(written, self.traits)
            os.replace(temporary, self.pixels)
            sync(self.pixels.parent)
        finally:
            for left in (temporary, written):
                left.unlink(missing_ok=True)

    def read(self, count: int, *, converted: bool) -> Decoded | None:
        """The pixels of `count` pictures, memory-mapped, and lines on what was done; None where they were not decoded before or
        are damaged. converted: the user gave the channels."""
        found = read_kept(self.pixels, self.traits, count)
        if found is None:
            return None
        pixels, counts = found
        notes = what_was_done(counts, count, converted=converted, sides=pixels.shape[1:3])
        if pixels.nbytes > _SAID_FROM:
            notes += (f"the decoded pictures take {pixels.nbytes / 1e9:.1f} GB on the disk, in {self.pixels}",)
        return Decoded(pixels, notes)

    def made(self, count: int, *, converted: bool) -> Decoded:
        """What was just written, as `read` gives it. Raises ValueError where the disk does not give it back."""
        found = self.read(count, converted=converted)
        if found is None:
            raise ValueError(
                f"{self.pixels} was written and cannot be read back: look at the disk, or set CTM_CACHE to another"
            )
        return found


def decoded(files: PictureFiles, size: Size | None, channels: int | None) -> Decoded:
    """All pictures at one size (`ctm.data.resize.fit`), from the cache if they were decoded before.

    size: None keeps the files' own, which must then be one square for all. channels: 1 or 3 converts; None takes colour if any
    file is in colour. The cache's key is a digest of every file's name, size and time. A build that was killed leaves a partial
    file, which the next build removes. Raises ValueError naming the files for unreadable pictures and for mixed sizes, and where
    the cache's disk has no room; OSError, naming the cache, where it cannot be written."""
    cached = CacheFile.named(f"folder-{_key(files, size, channels)}")
    found = cached.read(len(files), converted=channels is not None)
    if found is not None:
        return found
    try:
        _decode(files, size, channels, cached)
    except UnreadablePicture as error:
        raise ValueError(f"{error}{_other_unreadable(files, str(error))}") from error
    return cached.made(len(files), converted=channels is not None)


def _key(files: PictureFiles, size: Size | None, channels: int | None) -> str:
    """The digest of the JSON of [version, size, channels, place, [[name, size, time], …]], made piece by piece: a list of a
    million files need not stand in memory as text."""
    sides = None if size is None else sides_of(size)
    wanted = None if sides is None else sides[0] if sides[0] == sides[1] else list(sides)
    head = json.dumps([_VERSION, wanted, channels, str(files.place.resolve())])
    digest = hashlib.sha256(f"{head[:-1]}, [".encode())
    for number, state in enumerate(files.state()):
        digest.update((", " * (number > 0) + json.dumps(state)).encode())
    digest.update(b"]]")
    return digest.hexdigest()[:32]


def _decode(files: PictureFiles, size: Size | None, channels: int | None, target: CacheFile) -> None:
    """Write all files as one uint8 array (N, H, W, C)."""
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        colour = _any_colour(files, pool) if channels is None else channels == 3
        frame = Frame.like(open_picture(files.content(0), files.name(0)), files.name(0), size, colour)
        shape = (len(files), frame.height, frame.width, frame.channels)
        target.write(shape, lambda pixels: _fill(pixels, files, frame, pool))


def _fill(pixels: np.ndarray, files: PictureFiles, frame: Frame, pool: ThreadPoolExecutor) -> Counter[str]:
    """Write the pixels of all files to an array. Returns how many were treated how."""
    traits = Counter[str]()

    def one(index: int) -> frozenset[str]:
        name = files.name(index)
        pixels[index], treated = frame.pixels(open_picture(files.content(index), name), name)
        return treated

    with JobBar("decoding pictures", len(files), unit="pictures", shown=main_process() and len(files) > _CHUNK) as bar:
        for start in range(0, len(files), _CHUNK):
            for treated in pool.map(one, range(start, min(start + _CHUNK, len(files)))):
                traits.update(treated)
                bar.advance()
            bar.remind()
        bar.finish()
    return traits


def _any_colour(files: PictureFiles, pool: ThreadPoolExecutor) -> bool:
    def colour(index: int) -> bool:
        return stores_colour(files.content(index), files.name(index))

    chunks = (range(start, min(start + _CHUNK, len(files))) for start in range(0, len(files), _CHUNK))
    return any(any(pool.map(colour, chunk)) for chunk in chunks)


def _remove_abandoned(target: Path) -> None:
    """Remove what a killed process of this machine left of the same build. A process that still builds keeps its own."""
    for file in target.parent.glob(f"{target.stem}.{socket.gethostname()}-*.partial.*"):
        number = file.name.removeprefix(f"{target.stem}.{socket.gethostname()}-").split(".")[0]
        if number.isdigit() and not _runs(int(number)):
            file.unlink(missing_ok=True)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        return True
    return True


def _other_unreadable(files: PictureFiles, said: str) -> str:
    """What is said of the files that cannot be read, besides the one that `said` tells of: all of them in one go, so that
    nobody meets them one by one. Empty where there are none."""

    def problem(index: int) -> str | None:
        try:
            open_picture(files.content(index), files.name(index))
        except UnreadablePicture as error:
            return str(error)
        except ValueError:  # read, but refused: its own sentence comes when all can be read
            return None
        return None

    with ThreadPoolExecutor() as pool:
        found = list(enumerate(pool.map(problem, range(len(files)))))
    place = f"{files.place}: "  # of a zip, which the first sentence names
    others = [printable(files.name(index).removeprefix(place)) for index, told in found if told not in (None, said)]
    if not others:
        return ""
    more = f" and {len(others) - _NAMED:,} more" if len(others) > _NAMED else ""
    return f". {len(others):,} other{'s' * (len(others) > 1)} cannot be read: {', '.join(others[:_NAMED])}{more}"


def _check_room(directory: Path, shape: Sequence[int]) -> None:
    """Raises ValueError where the disk has no room, and OSError, naming it, where the cache cannot be made. A memory-mapped file
    that cannot grow would end the process."""
    directory.mkdir(parents=True, exist_ok=True)
    needed, free = int(np.prod(shape, dtype=np.float64)), shutil.disk_usage(directory).free
    if needed > free:
        raise ValueError(
            f"the decoded pictures need {needed / 1e9:.2f} GB in {directory}, where {free / 1e9:.2f} GB are free: make room, "
            "set CTM_CACHE to another disk, or give a smaller --data.size"
        )
