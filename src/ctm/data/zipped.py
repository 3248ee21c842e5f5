"""Pictures in a .zip with their labels in its dataset.json, as EDM's dataset_tool.py writes it (arXiv 2206.00364)."""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ctm.data.archive import check_places
from ctm.data.decoded import decoded
from ctm.data.files import EXTENSIONS, UnreadablePicture, needed_bytes
from ctm.data.images import Images
from ctm.data.notes import printable
from ctm.data.stack import Size
from ctm.data.tree import hidden_part, left_out_hidden, natural
from ctm.files import suffix_of
from ctm.foreign.text import parse_json, plain, text_in

__all__ = ["load_zip"]

_LABELS = "dataset.json"
_LARGEST = 1 << 28  # bytes of one picture file
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_TIMES = 10  # by which picture files may be packed tighter, if they are not small
_TOGETHER = 10**9  # bytes of all files, or ten times those of the zip
_HEAD = 1 << 16  # bytes of a picture file in which its size stands
_ROW, _BESIDE = 40, 1 << 16  # bytes of a row of dataset.json beside its name, and of dataset.json beside its rows
_MOST_CLASSES = 1_000_000
_SMALL = 1 << 20  # bytes of a picture file, however it is packed
_ENCRYPTED = 1
_DAMAGE = (OSError, EOFError, KeyError, RuntimeError, ValueError, zipfile.BadZipFile, zlib.error, NotImplementedError)


class _Members:
    """The picture files in a zip in the natural order of their names, as `ctm.data.decoded` takes them."""

    def __init__(self, place: Path) -> None:
        self.place = place
        try:
            self.archive = zipfile.ZipFile(place)
            check_places(self.archive)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"there is no file {place}") from error
        except _DAMAGE as error:
            raise self.damaged(error) from error
        members = [member for member in self.archive.infolist() if not member.is_dir()]
        pictures = [member for member in members if suffix_of(Path(member.filename)) in EXTENSIONS]
        hidden = [hidden_part(member.filename) for member in pictures]
        self.notes = left_out_hidden(part for part in hidden if part is not None)
        self.elsewhere = next((m.filename for m in members if m.filename.endswith(f"/{_LABELS}")), None)
        unseen = sum(part is not None for part in hidden)
        pictures = [member for member, part in zip(pictures, hidden, strict=True) if part is None]
        self.members = sorted(pictures, key=lambda member: (natural(member.filename), member.filename))
        self.others = sum(member.filename != _LABELS for member in members) - len(pictures) - unseen
        if len({member.filename for member in members}) < len(members):
            raise self.damaged(ValueError("it holds a name twice"))
        if not self.members:
            raise ValueError(f"{place} holds no pictures: it must be a zip of picture files, with {_LABELS} for labels")
        self._check_sizes()

    def _check_sizes(self) -> None:
        """Raises ValueError for files that are packed in another way than by deflate, and for more bytes than a zip of pictures
        has. Nothing is inflated."""
        for member in self.members:
            if member.compress_type not in _METHODS:
                raise ValueError(
                    f"{printable(f'{self.place}: {member.filename}')} is packed by another method than deflate: store the "
                    "pictures as they are (zip -0)"
                )
        total, size = sum(member.file_size for member in self.members), self.place.stat().st_size
        if total > max(_TOGETHER, _TIMES * size):
            raise ValueError(
                f"{printable(str(self.place))} would inflate to {total / 1e9:.1f} GB of picture files from {size / 1e6:.1f} MB, "
                f"more than {_TIMES} times its size: it was not read. If you trust it, store the pictures as they are (zip -0)"
            )

    def damaged(self, error: Exception) -> ValueError:
        reason = plain(str(error), 200) or type(error).__name__
        return ValueError(f"{printable(str(self.place))} cannot be read as a zip of pictures: it is damaged ({reason})")

    def __len__(self) -> int:
        return len(self.members)

    def name(self, index: int) -> str:
        return f"{self.place}: {self.members[index].filename}"

    def content(self, index: int) -> bytes:
        member = self.members[index]
        if member.flag_bits & _ENCRYPTED or member.file_size > _LARGEST:
            raise ValueError(f"{printable(self.name(index))} is encrypted, or larger than {_LARGEST >> 20} MB")
        tight = member.file_size > max(_SMALL, _TIMES * member.compress_size)
        if tight and member.file_size > needed_bytes(self._read(member, _HEAD), self.name(index)):
            raise UnreadablePicture(
                f"{printable(self.name(index))} has {member.file_size >> 20} MB, more than a picture of its size needs: remove it"
            )
        return self._read(member, _LARGEST)

    def _read(self, member: zipfile.ZipInfo, most: int) -> bytes:
        try:
            with self.archive.open(member) as file:
                return file.read(most)
        except _DAMAGE as error:
            raise self.damaged(error) from error

    def state(self) -> Iterator[tuple[str, int, int]]:
        stat = self.place.stat()
        yield self.place.name, stat.st_size, stat.st_mtime_ns

    def labels(self) -> tuple[np.ndarray | None, list[str]]:
        """(labels int64 (N,), −1 for none, or None; notes). Raises ValueError for a dataset.json of another form."""
        if _LABELS not in self.archive.namelist():
            other = "" if self.elsewhere is None else f" at its top; {self.elsewhere} is not read"
            return None, [f"used without labels: it has no {_LABELS}{other}"]
        name = f"{self.place} ({_LABELS})"
        most = _BESIDE + sum(2 * (len(json.dumps(member.filename)) + _ROW) for member in self.members)
        found = self.archive.getinfo(_LABELS)
        most = max(most, _TIMES * found.compress_size)
        if found.file_size > most or found.compress_type not in _METHODS:
            raise ValueError(
                f"{name} has {found.file_size} bytes, more than the {most} that labels of {len(self)} pictures take, or is "
                "packed by another method than deflate: it was not read"
            )
        try:
            with self.archive.open(_LABELS) as file:
                about: Any = parse_json(text_in(file, name, most), name)
        except (zipfile.BadZipFile, zlib.error, RuntimeError, EOFError, NotImplementedError) as error:
            raise self.damaged(error) from error
        rows = about.get("labels") if isinstance(about, dict) else None
        if rows is None and isinstance(about, dict):
            return None, [f"used without labels: its {_LABELS} has none"]
        if not isinstance(rows, list) or not all(_is_row(row) for row in rows):
            raise ValueError(
                f'{name} must hold "labels": a list of [file name, class number], the numbers from 0 to {_MOST_CLASSES - 1}'
            )
        return self._numbers(rows, name)

    def _numbers(self, rows: list[list[Any]], name: str) -> tuple[np.ndarray, list[str]]:
        """The label of each picture by the rows of dataset.json, and lines on rows and pictures that have no part in it."""
        known: dict[str, int] = {}
        for file, label in rows:
            if file in known:
                raise ValueError(f"{name} gives a label to {plain(file)} twice: keep one of them")
            known[file] = label
        found = np.array([known.get(member.filename, -1) for member in self.members], dtype=np.int64)
        without = int((found < 0).sum())
        if without == len(found):
            raise ValueError(f"{name} has no label for any picture in the zip: its names are others than the files'")
        lines = [f"without a label in {_LABELS}: {without} of {len(found)} pictures"] if without else []
        there = {member.filename for member in self.members}
        gone = [file for file in known if file not in there]
        if gone:
            lines.append(
                f"left out: {len(gone)} labels in {_LABELS} of what is no picture here, the first {plain(gone[0])}"
            )
        return found, lines


def _is_row(row: object) -> bool:
    fits = isinstance(row, list) and len(row) == 2 and isinstance(row[0], str) and type(row[1]) is int
    return fits and 0 <= row[1] < _MOST_CLASSES  # type: ignore[index]


def load_zip(path: Path, size: Size | None, channels: int | None = None) -> Images:
    """The pictures in a .zip, and the labels of its dataset.json: {"labels": [["00000/img00000000.png", 6], …]}, or null.

    size, channels, the cache and the errors: as of `ctm.data.decoded.decoded`. Raises FileNotFoundError, and ValueError for a
    file that is damaged, holds no pictures, or whose labels have another form."""
    members = _Members(path)
    with members.archive:
        labels, notes = members.labels()
        found = decoded(members, size, channels)
    notes += members.notes
    notes += [f"{members.others} files in it are no pictures: left out"] if members.others else []
    source = f"{len(members)} picture files in {path}"
    return Images(found.pixels, labels, [], str(path), source, (*notes, *found.notes))
