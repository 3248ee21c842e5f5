"""Files that torch.save wrote, read as data (tensors, numbers and texts) by a machine that runs and imports nothing."""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path
from typing import Any

import torch

from ctm.foreign.text import plain
from ctm.teachers.stack_machine import (
    REFUSED,
    DamagedError,
    Machine,
    Source,
    UnsafePickleError,
    map_file,
    sentences,
)
from ctm.teachers.tensors import Storage, Tensors, aligned, read_legacy, stored_numbers, torch_calls

__all__ = ["read_torch"]

_TABLE_LIMIT = 16 << 20  # bytes of a zip file's table of contents: enough for 100,000 tensors
_LOCAL_HEADER = struct.Struct("<4s22sHH")
_ALIGNED = 16  # bytes: torch.save aligns its storages to 64
_LONGEST_END = 1 << 17  # bytes: a zip file's end record with its comment


def read_torch(path: str | Path, *, mapped: bool = False) -> Any:
    """The contents of a file that torch.save wrote: dictionaries, lists, tuples, tensors on the CPU, numbers and texts.

    mapped: tensors are views into a private map of the file, so weights are read when they are used; else they are copies.
    torch.load is not used, not even with `weights_only`, because its reader hashes what the file says, and this may never
    end. Raises UnsafePickleError for a file that asks for anything else, ValueError for one that is damaged or inflates."""
    path = Path(path)
    with sentences(path, "damaged"):
        view = map_file(path)
        tensors = Tensors()
        if bytes(view[:2]) == b"PK":
            contents = _zip(path, view, tensors, mapped)
        else:
            contents = read_legacy(Source(view), tensors, torch_calls(tensors))
        tensors.fill(len(view))
        return contents


def _zip(path: Path, view: memoryview, tensors: Tensors, mapped: bool) -> Any:
    records = _records(path, view)
    root = next((name.removesuffix("data.pkl") for name in records if name.endswith("/data.pkl")), None)
    if root is None:
        raise DamagedError("it is a zip file without data.pkl, so torch.save did not write it")
    order = records.get(f"{root}byteorder")
    if order is not None and bytes(view[order.start : order.stop]) != b"little":
        raise DamagedError("it was written on a big-endian machine, whose files are not read here")
    whole = torch.UntypedStorage.from_file(str(path), False, len(view)) if mapped else None
    known: dict[str, torch.UntypedStorage] = {}

    def persistent(identity: object) -> Storage:
        key, storage = stored_numbers(identity, 5)
        place = records.get(f"{root}data/{key}", range(0))
        if len(place) < storage.size:
            raise DamagedError(f"it claims more numbers than it holds: storage {plain(key, 20)!r} is not there whole")
        if key not in known:
            mappable = whole is not None and place.start % _ALIGNED == 0 and len(place) > 0
            known[key] = whole[place.start : place.stop] if mappable else aligned(view[place.start : place.stop])  # type: ignore
        storage.data = known[key]
        return storage

    pickled = records[f"{root}data.pkl"]
    return Machine(Source(view[pickled.start : pickled.stop]), torch_calls(tensors), persistent, attributes=True).run()


def _records(path: Path, view: memoryview) -> dict[str, range]:
    """The place of each file's bytes in the zip. Raises for what torch.save does not write: compressed files, which inflate;
    files that share bytes or a name; a table of contents that is too large."""
    if _table_size(view) > _TABLE_LIMIT:
        raise UnsafePickleError(f"its zip's table of contents is larger than {_TABLE_LIMIT >> 20} MB. {REFUSED}")
    try:
        with zipfile.ZipFile(path) as archive:
            entries = sorted(archive.infolist(), key=lambda entry: entry.header_offset)
    except (zipfile.BadZipFile, NotImplementedError, EOFError, OSError) as error:
        raise ValueError(str(error)) from error
    records: dict[str, range] = {}
    free = 0
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size or entry.flag_bits & 1:
            raise UnsafePickleError(
                f"{plain(entry.filename)} in it is compressed, which torch.save does not do: it could inflate. {REFUSED}"
            )
        signature, _, name, extra = _LOCAL_HEADER.unpack_from(view, entry.header_offset)
        start = entry.header_offset + _LOCAL_HEADER.size + name + extra
        stop = start + entry.file_size
        if signature != b"PK\x03\x04" or entry.header_offset < free or stop > len(view) or entry.filename in records:
            raise UnsafePickleError(f"the files in it overlap, as {plain(entry.filename)} does. {REFUSED}")
        records[entry.filename], free = range(start, stop), stop
    return records


def _table_size(view: memoryview) -> int:
    """Size in bytes of a zip file's table of contents, as its end says."""
    end = bytes(view[-_LONGEST_END:])
    at = end.rfind(b"PK\x05\x06")
    if at < 0 or at + 16 > len(end):
        return 0  # no zip: said by who reads it
    size = int.from_bytes(end[at + 12 : at + 16], "little")
    long_form = end.rfind(b"PK\x06\x06", 0, at)
    if size == 0xFFFFFFFF and long_form >= 0:
        size = int.from_bytes(end[long_form + 40 : long_form + 48], "little")
    return size
