"""The arrays of an .npz file. Names, types and sizes are known before anything is inflated."""

from __future__ import annotations

import io
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from ctm.data.limits import check_size
from ctm.data.notes import printable
from ctm.foreign.text import plain

__all__ = ["DAMAGE", "Archive", "Header", "check_places", "read_header"]

_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # those numpy writes
_HEADER = 10_000  # bytes of an array's header, numpy's own limit
_ENCRYPTED = 1
DAMAGE = (OSError, ValueError, EOFError, KeyError, RuntimeError, OverflowError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True)
class Header:
    """Shape, type and bytes of an array, and its place in the file."""

    shape: tuple[int, ...]
    dtype: np.dtype
    member: zipfile.ZipInfo

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        size = self.dtype.itemsize
        for side in self.shape:
            size *= side
        return size

    def __str__(self) -> str:
        return f"{self.dtype} {'×'.join(map(str, self.shape)) or 'scalar'}"


class Archive:
    """An .npz file. headers: of its arrays by name. objects: names of arrays of Python objects, which are not read.

    Nothing of an array is inflated before `read`. All reads together may inflate what the limit of `ctm.data.limits` allows.
    Raises FileNotFoundError, and ValueError for a file that is no zip of plain arrays, whose parts overlap, that has a name
    twice, or whose headers do not agree with its sizes."""

    def __init__(self, path: Path, max_gb: float | None = None) -> None:
        self.path, self.max_gb = path, max_gb
        self.headers: dict[str, Header] = {}
        self.objects: list[str] = []
        self._read = 0
        try:
            self._bytes = path.stat().st_size
            with zipfile.ZipFile(path) as archive:
                members = [member for member in archive.infolist() if member.filename.endswith(".npy")]
                check_places(archive)
                for member in members:
                    self._add(archive, member)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"there is no file {path}") from error
        except DAMAGE as error:
            raise self._damaged(error) from error

    def _damaged(self, error: Exception) -> ValueError:
        return ValueError(
            f"{printable(str(self.path))} cannot be read as an .npz file: it is damaged, or no zip of plain arrays "
            f"({plain(str(error), 200)})"
        )

    def _add(self, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> None:
        name = member.filename.removesuffix(".npy")
        if name in self.headers or name in self.objects:
            raise ValueError(f"it holds {name} twice")
        if member.flag_bits & _ENCRYPTED or member.compress_type not in _METHODS:
            raise ValueError(f"{name} is encrypted, or packed by another method than numpy's")
        with archive.open(member) as file:
            shape, dtype, offset, _ = read_header(file)
        header = Header(shape, dtype, member)
        if dtype.hasobject:
            self.objects.append(name)
            return
        if min(shape, default=0) < 0 or header.nbytes + offset != member.file_size:
            raise ValueError(f"{name} says {header}, and its part of the zip {member.file_size} bytes")
        self.headers[name] = header

    def read(self, name: str) -> np.ndarray:
        """The array of that name. Raises ValueError where it is larger than the limit, together with the arrays read before."""
        header = self.headers[name]
        self._read += header.nbytes
        check_size(f"{self.path} ({name}, {header})", self._read, self._bytes, self.max_gb)
        try:
            with zipfile.ZipFile(self.path) as archive, archive.open(header.member) as file:
                array = np.lib.format.read_array(file, allow_pickle=False)
                if file.read(1):  # also checks the sum of the whole
                    raise ValueError(f"{name} goes on behind its end")
        except DAMAGE as error:
            raise self._damaged(error) from error
        return np.asarray(array)

    def map(self, name: str) -> np.ndarray:
        """The array in memory, as `read`."""
        return self.read(name)


def check_places(archive: zipfile.ZipFile) -> None:
    """Raises ValueError where parts of the zip overlap. One part could be inflated again and again under many names."""
    members = sorted(archive.infolist(), key=lambda member: member.header_offset)
    starts = [member.header_offset for member in members]
    for member, following in zip(members, [*starts[1:], archive.start_dir], strict=True):
        if member.header_offset + member.compress_size > following:
            raise ValueError(f"{member.filename} overlaps another part of the zip")


def read_header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype, int, bool]:
    """Shape and type of an array in numpy's format, the place where its values begin, and whether its first axis is the fastest
    (Fortran's order). Raises ValueError for anything but such a header."""
    start = file.read(8)
    if start[:6] != b"\x93NUMPY" or start[6:7] not in (b"\x01", b"\x02"):
        raise ValueError("a part of it is no array of numpy's format 1 or 2")
    width, read = (
        (2, np.lib.format.read_array_header_1_0) if start[6] == 1 else (4, np.lib.format.read_array_header_2_0)
    )
    length = file.read(width)
    count = int.from_bytes(length, "little")
    if len(length) < width or count > _HEADER:
        raise ValueError(f"an array's header has {count} bytes, more than {_HEADER}")
    try:
        shape, fortran, dtype = read(io.BytesIO(length + file.read(count)))
    except Exception as error:  # numpy gives it to Python's parser, which meets nonsense with errors of many kinds
        raise ValueError(f"an array's header cannot be read: {plain(str(error)) or type(error).__name__}") from error
    if any(isinstance(side, bool) for side in shape):
        raise ValueError("an array's header says true or false in place of a number")
    return tuple(int(side) for side in shape), dtype, 8 + width + count, bool(fortran)
