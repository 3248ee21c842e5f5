"""Files of arrays: .npy, .npz and .safetensors. Names, types and sizes are known before anything is read. Arrays are
memory-mapped where the format can be."""

from __future__ import annotations

import json
import struct
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from ctm.data.archive import DAMAGE, Archive, read_header
from ctm.data.mapped import watched
from ctm.data.notes import option, printable
from ctm.files import suffix_of
from ctm.foreign.text import plain
from ctm.foreign.weights import tensor_shapes

__all__ = ["ARRAY_FILES", "ArrayFile", "chosen_array", "open_arrays"]

ARRAY_FILES = (".npy", ".npz", ".safetensors")
_MOST = 1000  # files beside an .npy that are looked at
_LOCAL = 30  # bytes of a zip member's own header, before its name
_TYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "|i1", "U8": "|u1"}
_TYPES |= {"BOOL": "|b1", "U16": "<u2", "U32": "<u4", "U64": "<u8"}


class ArrayHeader(Protocol):
    """What is known of an array before it is read."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype: ...


class ArrayFile(Protocol):
    """Arrays by name. objects: names of what is there and is no array of numbers or texts."""

    @property
    def path(self) -> Path: ...

    @property
    def objects(self) -> list[str]: ...

    @property
    def headers(self) -> Mapping[str, ArrayHeader]: ...

    def read(self, name: str) -> np.ndarray:
        """The array in memory."""

    def map(self, name: str) -> np.ndarray:
        """The array, memory-mapped where the file can be, else in memory."""


def open_arrays(path: Path, max_gb: float | None = None) -> ArrayFile:
    """The arrays of a file. max_gb: as of `ctm.data.limits`, for arrays that have to be inflated. Raises FileNotFoundError, and
    ValueError for a file that is damaged or none of these."""
    kinds: dict[str, Callable[..., ArrayFile]] = {".npy": _NpyFiles, ".npz": _MappedArchive, ".safetensors": _Tensors}
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    return kinds[suffix_of(path)](path, max_gb)


@dataclass(frozen=True)
class _Place:
    """Shape, type and order of an array, and where its values begin in a file."""

    shape: tuple[int, ...]
    dtype: np.dtype
    start: int
    fortran: bool = False

    def __str__(self) -> str:
        return f"{self.dtype} {'×'.join(map(str, self.shape)) or 'scalar'}"

    def mapped(self, path: Path) -> np.ndarray:
        if self.dtype.itemsize == 0 or 0 in self.shape:
            return np.empty(self.shape, self.dtype)
        order = "F" if self.fortran else "C"
        mapped = np.memmap(path, self.dtype, "r", self.start, self.shape, order)  # type: ignore[call-overload]
        return watched(mapped, path)


class _MappedArchive(Archive):
    """An .npz whose arrays are memory-mapped where they are stored as they are (np.savez), and inflated where they are packed."""

    def map(self, name: str) -> np.ndarray:
        member = self.headers[name].member
        if member.compress_type != zipfile.ZIP_STORED:
            return self.read(name)
        try:
            with self.path.open("rb") as file:
                file.seek(member.header_offset)
                local = file.read(_LOCAL)
                if len(local) < _LOCAL or local[:4] != b"PK\x03\x04":
                    raise ValueError("a part of the zip does not begin where its list says")
                names, extra = struct.unpack("<HH", local[26:30])
                file.seek(member.header_offset + _LOCAL + names + extra)
                begin = file.tell()
                shape, dtype, length, fortran = read_header(file)
            if begin + member.file_size > self.path.stat().st_size or (shape, dtype) != self._told(name):
                raise ValueError(f"{name} goes beyond the file")
        except DAMAGE as error:
            raise self._damaged(error) from error
        return _Place(shape, dtype, begin + length, fortran).mapped(self.path)

    def _told(self, name: str) -> tuple[tuple[int, ...], np.dtype]:
        header = self.headers[name]
        return header.shape, header.dtype


class _NpyFiles:
    """The .npy files of a folder by their names, begun with one of them: observation.npy beside data.npy is its field
    observation."""

    def __init__(self, path: Path, max_gb: float | None = None) -> None:
        self.path = path
        self.objects: list[str] = []
        self.headers: dict[str, _Place] = {}
        self._files: dict[str, Path] = {}  # data.npy and data.NPY are one name: the file that was given, or the first
        beside = sorted(file for file in path.parent.iterdir() if suffix_of(file) == ".npy")
        for file in [path, *beside[:_MOST]]:
            if file.is_file() and file.stem not in self.headers and file.stem not in self.objects:
                self._add(file, needed=file == path)

    def _add(self, file: Path, *, needed: bool) -> None:
        try:
            with file.open("rb") as opened:
                shape, dtype, start, fortran = read_header(opened)
            place = _Place(shape, dtype, start, fortran)
            size = dtype.itemsize * int(np.prod([max(side, 0) for side in shape], dtype=object))
            if not dtype.hasobject and (min(shape, default=0) < 0 or start + size != file.stat().st_size):
                raise ValueError(f"it says {place}, and has {file.stat().st_size} bytes")
        except DAMAGE as error:
            if not needed:
                self.objects.append(file.stem)
                return
            raise ValueError(
                f"{printable(str(file))} cannot be read as an .npy file: it is damaged, or none ({plain(str(error), 200)})"
            ) from error
        if dtype.hasobject:
            self.objects.append(file.stem)
        else:
            self.headers[file.stem], self._files[file.stem] = place, file

    def read(self, name: str) -> np.ndarray:
        return np.array(self.map(name))

    def map(self, name: str) -> np.ndarray:
        return self.headers[name].mapped(self._files[name])


class _Tensors:
    """A .safetensors file. It has no texts and no objects."""

    def __init__(self, path: Path, max_gb: float | None = None) -> None:
        self.path = path
        self.objects: list[str] = []
        self.headers: dict[str, _Place] = {}
        shapes = tensor_shapes(path)  # checks the file: no gaps, no overlaps, whole
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            about = json.loads(file.read(length))
        for name, shape in shapes.items():
            kind = about[name]["dtype"]
            if kind not in _TYPES:
                self.objects.append(f"{name} ({plain(kind, 10)})")
                continue
            self.headers[name] = _Place(shape, np.dtype(_TYPES[kind]), 8 + length + about[name]["data_offsets"][0])

    def read(self, name: str) -> np.ndarray:
        return np.array(self.map(name))

    def map(self, name: str) -> np.ndarray:
        return self.headers[name].mapped(self.path)


def chosen_array(file: ArrayFile, kind: str, asked: str | None, known: tuple[str, ...]) -> str | None:
    """The name of an array: the one asked for, or the first known name that is there. Raises ValueError for a name that is not
    there or that holds objects."""
    if asked is None:
        return next((name for name in known if name in file.headers), None)
    if asked in file.objects:
        raise ValueError(f"{file.path}: {asked} holds Python objects, which are not read: save it as numbers or texts")
    if asked not in file.headers:
        held = ", ".join(file.headers)
        raise ValueError(f"{option(kind, asked)}: there is no such array: {file.path} holds the arrays {held}")
    return asked
