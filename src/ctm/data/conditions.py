"""The fields of a condition in an .npz file: for data that are trained on or measured, and for samples that are asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from ctm.conditioner import Conditioner
from ctm.conditions import MASK, PRESENT, is_flag_of
from ctm.data.stored import ARRAY_FILES, ArrayFile, open_arrays
from ctm.files import suffix_of

__all__ = ["fields_digest", "fields_for", "fields_in", "load_fields", "names_of", "read_fields"]


def load_fields(path: str | Path, fields: Mapping[str, tuple[int, ...]]) -> tuple[dict[str, np.ndarray], list[str]]:
    """The arrays of a file that are named like `fields` (names to shapes without N), each float32 (N, *shape) with one N, with
    their NAME_present, bool (N,), where the file has them, and lines that say what the file lacks or has besides.

    Raises FileNotFoundError, and ValueError for a file that is none, holds none of the fields, or one of another shape."""
    place = Path(path)
    if not place.is_file():
        raise FileNotFoundError(f"there is no file {path}: a condition is an .npz with {', '.join(fields)}")
    if suffix_of(place) not in ARRAY_FILES:
        raise ValueError(f"{path} is no .npz file: a condition is one with the arrays {', '.join(fields)}")
    archive = open_arrays(place)
    there = [name for name in fields if name in archive.headers]
    if not there:
        held = ", ".join([*archive.headers, *archive.objects]) or "none"
        raise ValueError(f"{path} holds the arrays {held}: the model's condition is {', '.join(fields)}")
    count = archive.headers[there[0]].shape[:1]
    read, notes = read_fields(archive, there, count[0] if count else 0)
    for name in there:
        if (values := read[name]).shape[1:] != tuple(fields[name]):
            raise ValueError(
                f"{path}: {name} must be (N, {', '.join(map(str, fields[name])) or 'one number each'}), got {values.shape}"
            )
    others = [name for name in [*archive.headers, *archive.objects] if name not in read]
    lines = notes + [f"{name} is not in the file and left out" for name in fields if name not in there]
    return read, lines + ([f"not read: {', '.join(others)}"] if others else [])


def read_fields(archive: ArrayFile, names: Iterable[str], count: int) -> tuple[dict[str, np.ndarray], list[str]]:
    """Fields of the condition, float32 (count, …) each. Under NAME_present, bool (count,), in which rows a field is there, and
    under NAME_mask, bool (count, L), which entries of its sequences (count, L, …) count, where the file says so; 0 stands where
    they do not. With lines that say how many rows lack one.

    Raises ValueError for an array of another length or type, and for values that count and are no finite numbers."""
    fields: dict[str, np.ndarray] = {}
    lines = []
    for name in names:
        present = _flags(archive, name + PRESENT, (count,))
        mask = _mask(archive, name, count)
        fields[name] = _field(archive, name, count, present, mask)
        if mask is not None:
            fields[name + MASK] = mask
        if present is not None:
            fields[name + PRESENT] = present
            lines.append(f"{name} is absent in {count - int(present.sum())} of {count} rows")
    return fields, lines


def _flags(archive: ArrayFile, flag: str, shape: tuple[int, ...]) -> np.ndarray | None:
    """bool of that shape: what an array of flags says; None where the file has none."""
    if flag not in archive.headers:
        return None
    header = archive.headers[flag]
    if header.dtype.kind not in "biu" or header.shape != shape:
        raise ValueError(
            f"{archive.path}: {flag} must be {' × '.join(map(str, shape))} times true or false, got {header.dtype} {header.shape}"
        )
    return archive.read(flag) != 0


def _mask(archive: ArrayFile, name: str, count: int) -> np.ndarray | None:
    """bool (count, L): which entries of a field's sequences count; None where the file does not say."""
    shape = archive.headers[name].shape
    if name + MASK in archive.headers and len(shape) < 3:
        raise ValueError(
            f"{archive.path}: {name}{MASK} says which entries of sequences ({count}, L, …) count, and {name} is {shape}"
        )
    return _flags(archive, name + MASK, (count, *shape[1:2]))


def _field(
    archive: ArrayFile, name: str, count: int, present: np.ndarray | None, mask: np.ndarray | None
) -> np.ndarray:
    """A field of the condition, float32 (count, …), 0 in the rows where it is not present and the entries that do not count."""
    header = archive.headers[name]
    if header.dtype.kind not in "iuf" or header.shape[:1] != (count,) or min(header.shape) < 1:
        raise ValueError(
            f"{archive.path}: a field of the condition must be real numbers ({count}, …), got {header.dtype} "
            f"{header.shape} ({name})"
        )
    with np.errstate(over="ignore"):
        values = archive.read(name)
        narrowed = values.astype(np.float32)
    if present is not None:
        narrowed[~present] = 0
    if mask is not None:
        narrowed[~mask] = 0
    fine = np.isfinite(narrowed.reshape(count, -1)).all(axis=1)
    if not fine.all():
        row = int(np.argmin(fine))
        beyond = "beyond float32's range" if np.isfinite(values[row]).all() else "not finite"
        raise ValueError(
            f"{archive.path}: {name} of item {row}, counted from 0, is {beyond}: leave such items out, scale them, or "
            f"say False for them in an array {name}{PRESENT}"
        )
    return narrowed


def fields_in(path: str | Path, names: Iterable[str]) -> list[str]:
    """Those of the names that a file holds as arrays; none for data that are no file of arrays."""
    place = Path(path)
    if suffix_of(place) not in ARRAY_FILES or not place.is_file():
        return []
    held = open_arrays(place).headers
    return [name for name in names if name in held]


def fields_for(
    conditioner: Conditioner, held: Mapping[str, np.ndarray], *, data: str, who: str = "the model"
) -> tuple[dict[str, np.ndarray], list[str]]:
    """The fields of some data, (N, …) each with its NAME_present, that a model takes, and lines that say which of its fields the
    data lack and which of theirs it does not know.

    Raises ValueError for a field of another shape than the model's."""
    takes = conditioner.given_fields
    used = {name: held[name] for name in held if name in takes or is_flag_of(name, takes)}
    for name in takes:
        if (values := used.get(name)) is not None and values.shape[1:] != takes[name]:
            raise ValueError(
                f"{who} takes the condition {name!r} as {list(takes[name])}, {data} has it as {list(values.shape[1:])}: make "
                "it of that shape, or leave the condition out by --condition none"
            )
    lacking, unknown = (
        [name for name in takes if name not in held],
        [name for name in held if name not in used and not is_flag_of(name, held)],
    )
    lines = [f"{who} is conditioned on {', '.join(lacking)}, of which {data} has nothing: left out"] if lacking else []
    return used, lines + ([f"{who} does not know {', '.join(unknown)}: left out for it"] if unknown else [])


def names_of(fields: Iterable[str]) -> list[str]:
    """The names of fields without the names of their flags."""
    names = list(fields)
    return [name for name in names if not is_flag_of(name, names)]


def fields_digest(fields: Mapping[str, np.ndarray]) -> str:
    """SHA-256 of the names, shapes and values of fields, in hexadecimal digits."""
    digest = hashlib.sha256()
    for name, values in sorted(fields.items()):
        digest.update(f"{name} {values.shape}".encode() + values.tobytes())
    return digest.hexdigest()
