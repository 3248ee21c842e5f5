"""Images and labels of a parquet file, an Arrow set or a hub data set, read with the libraries datasets and pyarrow."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ctm.data.arrays import without_labels
from ctm.data.arrow import ArrowFiles, is_saved_set
from ctm.data.classes import read_labels
from ctm.data.decoded import CacheFile
from ctm.data.files import Picture, open_picture, stores_colour
from ctm.data.images import Images
from ctm.data.limits import check_size, memory_limit
from ctm.data.notes import main_process, option
from ctm.data.resize import is_colour
from ctm.data.rowgroups import check_column, rows_at_once
from ctm.data.stack import Frame, Size, sides_of, what_was_done
from ctm.files import suffix_of
from ctm.progress import JobBar

__all__ = ["load_table", "open_table"]

_ROWS = 64  # read at once
_IN_MEMORY = 1 << 26  # bytes of pixels; more are kept in the cache and memory-mapped
_VERSION = 1  # of the pixels in the cache
_SHOWN = 10
_IMAGE_NAMES = ("image", "images", "img", "picture", "png", "jpg", "jpeg", "pixels")
_LABEL_NAMES = ("label", "labels")


@dataclass(frozen=True)
class _Table:
    """name: how the user asked for it. features: of `datasets`, by column. rows, file_bytes: their number and size. read:
    the values of a column, one by one as Python objects, from the start. state: as JSON, equal where nothing changed."""

    name: str
    features: dict[str, Any]
    rows: int
    file_bytes: int
    read: Callable[[str], Iterator[Any]]
    state: object = None


def load_table(
    name: str,
    size: Size | None,
    channels: int | None,
    split: str,
    *,
    image: str | None = None,
    label: str | None = None,
    max_gb: float | None = None,
    names: str = "",
) -> Images:
    """The images and labels of a parquet file or Arrow set (`ctm.data.arrow`), or of a hub data set. Many pictures are decoded
    into the cache once, and memory-mapped.

    image: its column; None takes the first of type Image, or a column of picture files' bytes, or of arrays. label: its
    column; None takes the first ClassLabel, or `label` or `labels`. names: the known names that are no hub ids, for an
    error. Raises FileNotFoundError where there is no such file or set, and ValueError for one that cannot be read."""
    try:
        import datasets
    except ImportError as error:
        raise FileNotFoundError(
            f"{name} is not a known name or an existing path; parquet files and hub data sets need the library datasets: "
            f"pip install 'ctm-torch[datasets]'. Names: {names}"
        ) from error
    is_file = suffix_of(Path(name)) in (".parquet", ".arrow")
    if is_file and not Path(name).is_file():
        raise FileNotFoundError(f"there is no file {name}")
    try:
        table = open_table(name, split, datasets, max_gb)
    except Exception as error:  # the libraries raise their own, the hub's and arrow's errors
        if Path(name).exists():
            kind = "an Arrow set" if is_saved_set(Path(name)) else "a parquet file"
            raise ValueError(f"{name} cannot be read as {kind}: {_first_line(error)}") from error
        raise FileNotFoundError(
            f"{name} is no existing path nor one of the names {names}, and the hub does not give it: {_first_line(error)}"
        ) from error
    if table.rows == 0:
        raise ValueError(f"{name} holds no rows")
    image_column = _image_column(table, image, datasets)
    label_column = _label_column(table, label, datasets)
    pixels, done = _pixels(table, image_column, size, channels, max_gb)
    labels, class_names, notes = _labels(table, label_column)
    notes = [*done, *notes, *_others(table, image_column, label_column, datasets)]
    return Images(pixels, labels, class_names, name, f"{table.rows} images of {name}", tuple(notes))


def open_table(name: str, split: str, datasets: Any, max_gb: float | None = None) -> _Table:
    """The columns of a parquet file, Arrow set or hub data set. datasets: the library. Errors are those of the libraries."""
    if is_saved_set(Path(name)):
        found = ArrowFiles(Path(name), split)
        features = dict(datasets.Features.from_arrow_schema(found.schema))
        return _Table(name, features, found.rows, found.size, lambda column: found.read(column, _ROWS), found.state)
    if suffix_of(Path(name)) == ".parquet":
        return _parquet(name, datasets, max_gb)
    return _hub(name, split, datasets)


def _parquet(name: str, datasets: Any, max_gb: float | None) -> _Table:
    """A file's columns, read a few rows at a time; nothing is copied to a cache. Reading raises ValueError before a column
    takes more than the limit of `ctm.data.limits`, counted over its rows."""
    import pyarrow.parquet

    file = pyarrow.parquet.ParquetFile(name, memory_map=True)
    features = dict(datasets.Features.from_arrow_schema(file.schema_arrow))

    stat = Path(name).stat()
    rows, file_bytes = file.metadata.num_rows, stat.st_size

    def read(column: str) -> Iterator[Any]:
        what, size, seen = f"{name} ({column})", 0, 0
        check_column(what, file.metadata, column, file_bytes, max_gb)
        for batch in file.iter_batches(batch_size=rows_at_once(file.metadata, column, _ROWS), columns=[column]):
            size, seen = size + batch.nbytes, seen + batch.num_rows
            if size > memory_limit(file_bytes, max_gb):  # the sentence tells what all rows would take
                check_size(what, size * rows // seen, file_bytes, max_gb)
            yield from batch.column(0).to_pylist()

    return _Table(name, features, rows, file_bytes, read, [str(Path(name).resolve()), file_bytes, stat.st_mtime_ns])


def _hub(name: str, split: str, datasets: Any) -> _Table:
    from ctm.hub import asking_hub

    with asking_hub():
        table = datasets.load_dataset(name, split=split)

    def read(column: str) -> Iterator[Any]:
        for batch in table.with_format("arrow").select_columns([column]).iter(_ROWS):
            yield from batch.column(column).to_pylist()

    return _Table(name, dict(table.features), table.num_rows, int(table.data.nbytes), read, table._fingerprint)


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__


def _is_files(feature: Any, datasets: Any) -> bool:
    """Whether a column holds picture files: bytes, or bytes and a path."""
    if isinstance(feature, datasets.Image):
        return True
    if isinstance(feature, dict):
        return "bytes" in feature
    return isinstance(feature, datasets.Value) and feature.dtype in ("binary", "large_binary")


def _is_arrays(feature: Any, datasets: Any) -> bool:
    """Whether a column holds arrays of pixels: Array2D, Array3D, or lists of lists."""
    inner = getattr(feature, "feature", None)
    nested = hasattr(inner, "feature") or isinstance(inner, list)
    nested = nested or (
        isinstance(feature, list) and bool(feature) and (isinstance(feature[0], list) or hasattr(feature[0], "feature"))
    )
    return isinstance(feature, datasets.Array2D | datasets.Array3D) or nested


def _image_column(table: _Table, asked: str | None, datasets: Any) -> str:
    """The column of images. Raises ValueError where there is none, or where the given column holds no images."""
    columns = ", ".join(table.features)
    if asked is not None:
        if asked not in table.features:
            raise ValueError(f"{option('image', asked)}: {table.name} has the columns {columns}")
        if not _is_files(table.features[asked], datasets) and not _is_arrays(table.features[asked], datasets):
            raise ValueError(
                f"{option('image', asked)}: this column of {table.name} holds {table.features[asked]}, neither picture files nor "
                "arrays"
            )
        return asked
    typed = [k for k, f in table.features.items() if isinstance(f, datasets.Image)]
    able = [k for k, f in table.features.items() if _is_files(f, datasets)]
    able += [k for k, f in table.features.items() if _is_arrays(f, datasets)]
    known = [k for k in _IMAGE_NAMES if k in able]
    chosen = next(iter([*typed, *known, *able]), None)
    if chosen is None:
        raise ValueError(
            f"{table.name} has no column of images: its columns are {columns}, and none holds picture files or arrays"
        )
    return chosen


def _label_column(table: _Table, asked: str | None, datasets: Any) -> str | None:
    if asked is not None and asked not in table.features:
        raise ValueError(f"{option('label', asked)}: {table.name} has the columns {', '.join(table.features)}")
    typed = [k for k, f in table.features.items() if isinstance(f, datasets.ClassLabel)]
    return asked or next(iter([*typed, *(k for k in _LABEL_NAMES if k in table.features)]), None)


def _could_be_labels(feature: Any, datasets: Any) -> bool:
    if isinstance(feature, datasets.ClassLabel):
        return True
    return isinstance(feature, datasets.Value) and ("int" in feature.dtype or "string" in feature.dtype)


def _others(table: _Table, image: str, label: str | None, datasets: Any) -> list[str]:
    """Lines that name the columns that are not read."""
    left = [column for column in table.features if column not in (image, label)]
    able = [column for column in left if _could_be_labels(table.features[column], datasets)]
    lines = []
    if label is None and able:
        lines.append(without_labels(able[:_SHOWN]))
        left = [column for column in left if column not in able]
    shown = ", ".join(left[:_SHOWN]) + (", …" if len(left) > _SHOWN else "")
    return lines + ([f"columns not read: {shown}"] if left else [])


def _labels(table: _Table, column: str | None) -> tuple[np.ndarray | None, list[str], list[str]]:
    if column is None:
        return None, [], []
    values = np.empty(table.rows, dtype=object)
    values[:] = list(table.read(column))
    labels, names, notes = read_labels(values, table.rows, f"{table.name} ({column})")
    own = getattr(table.features[column], "names", None)
    if own and labels is not None and not names and int(labels.max()) >= len(own):
        raise ValueError(
            f"{table.name} ({column}): image {int(labels.argmax())} has the class number {int(labels.max())}, and the column "
            f"names only 0 … {len(own) - 1}: mend its names, or leave such rows out"
        )
    return labels, list(own) if own and labels is not None else names, notes


def _pixels(
    table: _Table, column: str, size: Size | None, channels: int | None, max_gb: float | None
) -> tuple[np.ndarray, tuple[str, ...]]:
    """uint8 (N, side, side, C), and lines that say what was done. Those of more than 64 MB are memory-mapped from the cache,
    where they are decoded once."""
    first = _picture(next(table.read(column)), f"{table.name}: image 0")
    _check_rows(
        table, Frame.like(first, f"{table.name}: image 0", size, False), max_gb
    )  # before all rows are looked at
    cached = CacheFile.named(f"table-{_key(table, column, size, channels)}")
    found = cached.read(table.rows, converted=channels is not None)
    if found is not None:
        return found.pixels, found.notes
    colour = channels == 3 or (channels is None and any(map(_in_colour, table.read(column))))
    frame = Frame.like(first, f"{table.name}: image 0", size, colour)
    shape = _check_rows(table, frame, max_gb)
    if math.prod(shape) > _IN_MEMORY:
        cached.write(shape, lambda pixels: _fill(pixels, table, column, frame))
        made = cached.made(table.rows, converted=channels is not None)
        return made.pixels, made.notes
    pixels = np.empty(shape, dtype=np.uint8)
    traits = _fill(pixels, table, column, frame)
    return pixels, what_was_done(traits, table.rows, converted=channels is not None, sides=shape[1:3])


def _key(table: _Table, column: str, size: Size | None, channels: int | None) -> str:
    sides = None if size is None else list(sides_of(size))
    return hashlib.sha256(json.dumps([_VERSION, sides, channels, column, table.state]).encode()).hexdigest()[:32]


def _fill(pixels: np.ndarray, table: _Table, column: str, frame: Frame) -> Counter[str]:
    """Write the pixels of all rows, a few at a time by all cores. Returns how many were treated how."""
    traits, cells = Counter[str](), enumerate(table.read(column))

    def one(numbered: tuple[int, Any]) -> frozenset[str]:
        row, cell = numbered
        name = f"{table.name}: image {row}"
        pixels[row], treated = frame.pixels(_picture(cell, name), name)
        return treated

    shown = main_process() and math.prod(pixels.shape) > _IN_MEMORY
    with (
        ThreadPoolExecutor(os.cpu_count() or 1) as pool,
        JobBar("decoding pictures", table.rows, unit="pictures", shown=shown) as bar,
    ):
        while some := list(islice(cells, _ROWS)):
            for treated in pool.map(one, some):
                traits.update(treated)
                bar.advance()
            bar.remind()
        bar.finish()
    return traits


def _check_rows(table: _Table, frame: Frame, max_gb: float | None) -> tuple[int, ...]:
    """The shape of all pixels. Raises ValueError where they take too much memory."""
    shape = (table.rows, frame.height, frame.width, frame.channels)
    what = f"{table.name} ({'×'.join(map(str, shape))} pixels)"
    check_size(what, table.rows * math.prod(shape[1:]), table.file_bytes, max_gb)
    return shape


def _bytes(cell: Any, name: str) -> bytes | Path | None:
    """The bytes of the picture file in a cell; None for a cell that holds pixels."""
    if isinstance(cell, dict) and cell.get("bytes") is None and cell.get("path"):
        path = Path(cell["path"])
        if not path.is_file():
            raise ValueError(f"{name} is not in the table, which names the file {path}: it is not there")
        return path
    content = cell.get("bytes") if isinstance(cell, dict) else cell
    if content is None:
        raise ValueError(f"{name} is missing: remove its row")
    return content if isinstance(content, bytes) else None


def _picture(cell: Any, name: str) -> Picture:
    """The picture in a cell: from a file's bytes, or from pixels (H, W) or (H, W, C)."""
    content = _bytes(cell, name)
    if content is not None:
        return open_picture(content, name)
    try:
        pixels = np.asarray(cell)
    except ValueError as error:
        raise ValueError(f"{name} is a list whose rows differ in length: it holds no picture") from error
    if pixels.dtype.kind not in "iu" or pixels.ndim not in (2, 3) or not 0 <= pixels.min() <= pixels.max() <= 255:
        raise ValueError(
            f"{name} must be whole numbers 0 … 255 of shape (H, W) or (H, W, C), got {pixels.dtype} {pixels.shape}"
        )
    if pixels.ndim == 3 and pixels.shape[-1] not in (1, 3):
        raise ValueError(f"{name} has shape {pixels.shape}: the last side must be 1 or 3 channels")
    pixels = pixels.squeeze(-1) if pixels.ndim == 3 and pixels.shape[-1] == 1 else pixels
    return Picture(Image.fromarray(pixels.astype(np.uint8)))


def _in_colour(cell: Any) -> bool:
    content = _bytes(cell, "an image")
    return is_colour(_picture(cell, "an image").image) if content is None else stores_colour(content, "an image")
