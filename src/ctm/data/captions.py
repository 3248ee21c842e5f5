"""The captions of pictures: a text for each, in the order of the pictures of `load_images`."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from ctm.data.archive import Archive
from ctm.data.arrow import is_saved_set
from ctm.data.classes import text_of
from ctm.data.images import Images
from ctm.data.load import NAMES
from ctm.data.notes import tell
from ctm.data.tree import find_pictures
from ctm.files import suffix_of
from ctm.foreign.text import parse_json, plain, read_text

__all__ = ["load_captions", "unique"]

_KNOWN = ("text", "caption", "captions", "texts")
_LISTS = ("metadata.csv", "metadata.jsonl")
_WITHOUT = (".zip", ".npy", ".safetensors")
_MOST_BYTES = 1 << 30
_PLACE = "{}"


def load_captions(name: str, images: Images, column: str | None = None, split: str | None = None) -> list[str]:
    """A caption for each of the images that `load_images(name)` gave, "" for one without.

    A folder has them in metadata.csv or metadata.jsonl beside its pictures, with the columns file_name and text, as diffusers'
    own training script reads them; an .npz in an array of texts (N,), a parquet file and a hub set in a column. column: its name;
    None: text or caption. A column with {} in it is a caption for all, in which the name of the picture's class stands for {}.
    Lines say how many have none. Raises ValueError where there are no captions, and for those that do not fit the pictures."""
    path = Path(name)
    if column is not None and _PLACE in column:
        found = _of_classes(images, column)
    elif name in NAMES:
        raise ValueError(
            f"{name} has no captions: give --caption 'a {_PLACE}', in which the name of the class stands for {_PLACE}"
        )
    elif path.is_dir() and not is_saved_set(path):
        found = _of_folder(path, column)
    elif path.is_file() and suffix_of(path) in _WITHOUT:
        raise ValueError(
            f"captions are not read from a file of that kind, {plain(name)}: unpack the pictures to a folder with {_LISTS[0]} "
            f"beside them, or give --caption 'a {_PLACE}', in which the name of the class stands for {_PLACE}"
        )
    elif suffix_of(path) == ".npz":
        found = _of_npz(path, column)
    else:
        found = _of_table(name, column, split)
    if len(found) != len(images):
        raise ValueError(f"{name} has {len(found)} captions for {len(images)} pictures")
    without = sum(not caption for caption in found)
    tell(
        [f"{without} of {len(found)} pictures have no caption: they stand for the empty prompt"] if without else [],
        name,
    )
    return found


def _of_classes(images: Images, template: str) -> list[str]:
    if images.labels is None:
        raise ValueError(f"--caption {template!r} puts the class into the caption, and {images.name} has no labels")
    names = images.class_names or [str(number) for number in range(images.num_classes)]
    return ["" if label < 0 else template.replace(_PLACE, names[label]) for label in images.labels.tolist()]


def _of_folder(root: Path, column: str | None) -> list[str]:
    """The captions by file name, in the order of the pictures. A line in the list that names no picture is a mistake."""
    files = [root / name for name in _LISTS if (root / name).is_file()]
    if len(files) != 1:
        held = f"both {' and '.join(_LISTS)}" if files else f"neither {' nor '.join(_LISTS)}"
        raise ValueError(f"{root} has {held}: its captions stand in one of them, with the columns file_name and text")
    text = read_text(files[0], _MOST_BYTES).removeprefix("\ufeff")  # which spreadsheets write
    rows = _csv(text, files[0]) if suffix_of(files[0]) == ".csv" else _json_lines(text, files[0])
    captions: dict[str, str] = {}
    for number, row in enumerate(rows, 1):
        chosen = _column(row, column, str(files[0]))
        file, caption = row.get("file_name"), row.get(chosen)
        if not isinstance(file, str) or not isinstance(caption, str | None) or file in captions:
            raise ValueError(f"{files[0]}: row {number} needs a file_name that is there once, and a text in {chosen}")
        captions[file] = (caption or "").strip()
    names = [picture.relative_to(root).as_posix() for picture in find_pictures(root).files]
    unknown = sorted(set(captions) - set(names))
    if unknown:
        raise ValueError(
            f"{files[0]} names {plain(unknown[0])}, which is no picture in {root} ({len(unknown)} such rows)"
        )
    return [captions.get(name, "") for name in names]


def _csv(text: str, file: Path) -> Iterable[Mapping[str, object]]:
    try:
        reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        columns = list(reader.fieldnames or ())
        twice = next((name for name in columns if columns.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"{file} has two columns {plain(twice)}: keep one of them")
        for number, row in enumerate(reader, 1):
            if None in row:
                raise ValueError(
                    f"{file}: row {number} has more than the {len(columns)} columns {plain(', '.join(columns))}: a text with "
                    'a comma in it stands in quotes, "like this, one"'
                )
            yield row
    except csv.Error as error:
        raise ValueError(f"{file} is not readable as CSV: {plain(str(error))}") from error


def _json_lines(text: str, file: Path) -> Iterable[Mapping[str, object]]:
    for number, line in enumerate(text.split("\n"), 1):  # splitlines parts at characters that JSON may hold, too
        if line.strip():
            row = parse_json(line, f"{file}, line {number}")
            if not isinstance(row, dict):
                raise ValueError(f"{file}: line {number} holds no names with values")
            yield row


def _column(row: Iterable[str], column: str | None, place: str) -> str:
    """The name of the column of captions. Raises ValueError where there is none."""
    held = [name for name in row if isinstance(name, str)]
    chosen = column if column is not None else next((name for name in _KNOWN if name in held), None)
    if chosen is None or chosen not in held:
        raise ValueError(
            f"{place} has {', '.join(plain(name) for name in held[:12]) or 'nothing'}, and its captions are looked for in "
            f"{column if column is not None else ' or '.join(_KNOWN[:2])}: name it by --caption"
        )
    return chosen


def _of_npz(path: Path, column: str | None) -> list[str]:
    archive = Archive(path)
    name = _column(archive.headers, column, str(path))
    header = archive.headers[name]
    if header.dtype.kind not in "US" or len(header.shape) != 1:
        raise ValueError(f"{path}: captions must be texts (N,), got {header} ({name})")
    return [text_of(text, f"{path}: {name}[{row}]").strip() for row, text in enumerate(archive.read(name))]


def _of_table(name: str, column: str | None, split: str | None) -> list[str]:
    import datasets

    from ctm.data.table import open_table

    table = open_table(name, split or "train", datasets)
    chosen = _column(table.features, column, name)
    values = list(table.read(chosen))
    if not all(isinstance(value, str | None) for value in values):
        raise ValueError(f"{name}: the column {chosen} holds no texts")
    return [(value or "").strip() for value in values]


def unique(captions: Iterable[str]) -> tuple[list[str], np.ndarray]:
    """(each caption once, in order, without the empty one; the number of each picture's in them, −1 for the empty one)."""
    known: dict[str, int] = {}
    numbers = [-1 if not text else known.setdefault(text, len(known)) for text in captions]
    return list(known), np.array(numbers, dtype=np.int64)
