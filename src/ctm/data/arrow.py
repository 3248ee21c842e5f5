"""Arrow files, as the library datasets writes them: a .arrow file, or the directory of save_to_disk. Memory-mapped: a few rows at
a time are looked at."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ctm.data.notes import option
from ctm.files import suffix_of
from ctm.foreign.text import plain, read_json

__all__ = ["ArrowFiles", "is_saved_set"]

_STATE, _SPLITS = "state.json", "dataset_dict.json"
_MAGIC = b"ARROW1\0\0"  # of a file with a list at its end; else it is a stream
_HEADER, _COMPRESSION = 2, 3  # of fields in Arrow's format: of a message, of its records
_DICTIONARY, _RECORDS = 2, 3  # kinds of a message
_PLAIN = ("dictionary", "run_end_encoded", "string_view", "binary_view", "list_view", "large_list_view")


def is_saved_set(path: Path) -> bool:
    """Whether a path is an Arrow file, or a directory of save_to_disk."""
    if path.is_dir():
        return (path / _SPLITS).is_file() or ((path / _STATE).is_file() and any(path.glob("*.arrow")))
    return suffix_of(path) == ".arrow" and path.is_file()


class ArrowFiles:
    """The files of a set in order. split: of a directory with several.

    Raises ValueError, in a sentence, for a directory whose list names no files in it, for a damaged file, and for compressed
    parts, which would have to be inflated; pyarrow's own errors for what is no Arrow file."""

    def __init__(self, path: Path, split: str) -> None:
        self.files = [path] if path.is_file() else _listed(path, split)
        self.rows = 0
        self.schema: Any = None
        for file in self.files:
            with _stream(file) as reader:
                if self.schema is not None and not reader.schema.equals(self.schema):
                    raise ValueError(f"{file} has other columns than {self.files[0]}")
                self.schema = reader.schema
            _check_messages(file)
            with _stream(file) as reader:
                for batch in reader:
                    batch.validate()
                    self.rows += batch.num_rows

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.stat().st_size for file in self.files)

    @property
    def state(self) -> list[tuple[str, int, int]]:
        """Name, size and time of each file, equal where nothing changed."""
        kept = [(file, file.stat()) for file in self.files]
        return [(str(file.resolve()), stat.st_size, stat.st_mtime_ns) for file, stat in kept]

    def read(self, column: str, rows: int) -> Iterator[Any]:
        """The values of a column, one by one as Python objects; so many rows are made together. Raises ValueError for a column
        that holds a value once for several rows."""
        kind = str(self.schema.field(column).type)
        if any(name in kind for name in _PLAIN):
            raise ValueError(
                f"{self.files[0]}: the column {plain(column)} is {plain(kind)}, which holds a value once for several rows: save "
                "it as plain values"
            )
        for file in self.files:
            with _stream(file) as reader:
                for batch in reader:
                    for start in range(0, batch.num_rows, rows):
                        values = batch.column(column).slice(start, rows)
                        try:
                            values.validate(full=True)  # offsets of a stranger's file
                        except ValueError as error:  # pyarrow's own is one
                            raise ValueError(f"{file} is damaged: {plain(column)}: {plain(str(error), 200)}") from error
                        yield from values.to_pylist()


def _listed(path: Path, split: str) -> list[Path]:
    """The data files of a directory of save_to_disk."""
    if not (path / _STATE).is_file():
        found = read_json(path / _SPLITS)
        names = found.get("splits") if isinstance(found, dict) else None
        known = [name for name in names if isinstance(name, str)] if isinstance(names, list) else []
        if split not in known or Path(split).name != split or not (path / split / _STATE).is_file():
            raise ValueError(f"{option('split', split)}: {path} has {', '.join(map(plain, known)) or 'no splits'}")
        path = path / split
    state = read_json(path / _STATE)
    entries = state.get("_data_files") if isinstance(state, dict) else None
    names = [entry.get("filename") if isinstance(entry, dict) else None for entry in entries or ()]
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or not (path / name).is_file():
            raise ValueError(f"{path / _STATE} names {plain(str(name))}, which is no file beside it")
    if not names:
        raise ValueError(f"{path / _STATE} names no data files")
    return [path / str(name) for name in names]


def _source(file: Path) -> Any:
    import pyarrow

    source = pyarrow.memory_map(str(file))
    if source.read(len(_MAGIC)) != _MAGIC:
        source.seek(0)
    return source


def _stream(file: Path) -> Any:
    import pyarrow

    return pyarrow.ipc.open_stream(_source(file))


def _check_messages(file: Path) -> None:
    """Raises ValueError for a part that is compressed: it says itself how much memory it takes."""
    import pyarrow

    reader = pyarrow.ipc.MessageReader.open_stream(_source(file))
    while True:
        try:
            message = reader.read_next_message()
        except StopIteration:
            return
        table = _Flat.root(memoryview(message.metadata))
        kind, records = table.byte(1), table.table(_HEADER)
        records = records.table(1) if kind == _DICTIONARY else records
        if kind in (_DICTIONARY, _RECORDS) and records.has(_COMPRESSION):
            raise ValueError(f"{file} has compressed parts, which are not read: save it without compression")


class _Flat:
    """A table of a flatbuffer that pyarrow has verified: as much of it as is looked at here."""

    def __init__(self, data: memoryview, place: int) -> None:
        self.data, self.place = data, place
        self.fields = place - self._number(place, 4)

    @classmethod
    def root(cls, data: memoryview) -> _Flat:
        return cls(data, int.from_bytes(data[:4], "little"))

    def _number(self, place: int, size: int) -> int:
        return int.from_bytes(self.data[place : place + size], "little", signed=size == 4)

    def _offset(self, field: int) -> int:
        inside = 4 + 2 * field < self._number(self.fields, 2)
        return self._number(self.fields + 4 + 2 * field, 2) if inside else 0

    def has(self, field: int) -> bool:
        return self._offset(field) != 0

    def byte(self, field: int) -> int:
        return int(self.data[self.place + self._offset(field)]) if self.has(field) else 0

    def table(self, field: int) -> _Flat:
        start = self.place + self._offset(field)
        return _Flat(self.data, start + self._number(start, 4))
