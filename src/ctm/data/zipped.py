"""Pictures in a .zip with their labels in its dataset.json, as EDM's dataset_tool.py writes it (arXiv 2206.00364)."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ctm.data.decoded import decoded
from ctm.data.files import EXTENSIONS
from ctm.data.images import Images
from ctm.data.notes import printable
from ctm.data.stack import Size
from ctm.data.tree import natural
from ctm.files import suffix_of
from ctm.foreign.text import parse_json, plain, text_in

__all__ = ["load_zip"]

_LABELS = "dataset.json"
_LONGEST = 1 << 28  # bytes of it: it has about 40 for each picture
_LARGEST = 1 << 28  # bytes of one picture file
_MOST_CLASSES = 1_000_000
_ENCRYPTED = 1
_DAMAGE = (OSError, EOFError, KeyError, RuntimeError, ValueError, zipfile.BadZipFile, zlib.error, NotImplementedError)


class _Members:
    """The picture files in a zip in the natural order of their names, as `ctm.data.decoded` takes them."""

    def __init__(self, place: Path) -> None:
        self.place = place
        try:
            self.archive = zipfile.ZipFile(place)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"there is no file {place}") from error
        except _DAMAGE as error:
            raise self.damaged(error) from error
        members = [member for member in self.archive.infolist() if not member.is_dir()]
        pictures = [member for member in members if suffix_of(Path(member.filename)) in EXTENSIONS]
        self.members = sorted(pictures, key=lambda member: (natural(member.filename), member.filename))
        self.others = sum(member.filename != _LABELS for member in members) - len(pictures)
        names = [member.filename for member in self.members]
        if len(set(names)) < len(names):
            raise self.damaged(ValueError("it holds a name twice"))
        if not names:
            raise ValueError(f"{place} holds no pictures: it must be a zip of picture files, with {_LABELS} for labels")

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
        try:
            with self.archive.open(member) as file:
                found = file.read(_LARGEST)
        except _DAMAGE as error:
            raise self.damaged(error) from error
        return found

    def state(self) -> Iterator[tuple[str, int, int]]:
        stat = self.place.stat()
        yield self.place.name, stat.st_size, stat.st_mtime_ns

    def labels(self) -> tuple[np.ndarray | None, list[str]]:
        """(labels int64 (N,), −1 for none, or None; notes). Raises ValueError for a dataset.json of another form."""
        if _LABELS not in self.archive.namelist():
            return None, [f"used without labels: it has no {_LABELS}"]
        name = f"{self.place} ({_LABELS})"
        try:
            with self.archive.open(_LABELS) as file:
                about: Any = parse_json(text_in(file, name, _LONGEST), name)
        except (zipfile.BadZipFile, zlib.error, RuntimeError, EOFError, NotImplementedError) as error:
            raise self.damaged(error) from error
        rows = about.get("labels") if isinstance(about, dict) else None
        if rows is None and isinstance(about, dict):
            return None, [f"used without labels: its {_LABELS} has none"]
        if not isinstance(rows, list) or not all(_is_row(row) for row in rows):
            raise ValueError(
                f'{name} must hold "labels": a list of [file name, class number], the numbers from 0 to {_MOST_CLASSES - 1}'
            )
        known = {str(file): int(label) for file, label in rows}
        found = np.array([known.get(member.filename, -1) for member in self.members], dtype=np.int64)
        without = int((found < 0).sum())
        if without == len(found):
            raise ValueError(f"{name} has no label for any picture in the zip: its names are others than the files'")
        return found, [f"without a label in {_LABELS}: {without} of {len(found)} pictures"] if without else []


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
    notes += [f"{members.others} files in it are no pictures: left out"] if members.others else []
    source = f"{len(members)} picture files in {path}"
    return Images(found.pixels, labels, [], str(path), source, (*notes, *found.notes))
