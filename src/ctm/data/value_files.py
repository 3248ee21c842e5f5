"""Vectors, sequences and fields from files of arrays."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ctm.data.arrays import read_class_names, without_labels
from ctm.data.classes import could_be_labels, read_labels
from ctm.data.conditions import read_fields
from ctm.data.notes import option, printable, tell
from ctm.data.stored import ArrayFile, chosen_array, open_arrays
from ctm.data.values import Values, check_values, scaled_values
from ctm.files import suffix_of
from ctm.scaling import Rule

__all__ = ["load_values", "main_array"]

_VALUES, _LABELS, _NAMES = ("data", "images", "arr_0"), ("labels", "arr_1"), "class_names"
_PICTURES = ("images", "arr_0")


def main_array(path: Path, image: str | None = None) -> str | None:
    """What the array of items in a file is: "values", "pictures", or None where there is none of a known name.

    Pictures are uint8 arrays called images or arr_0, or named by `image`, with the axes (N, H, W) or (N, H, W, C); in an .npy,
    uint8 with three or four axes. Everything else is values, the channels in front. Raises as `open_arrays`."""
    file = open_arrays(path)
    name = _main(file, image)
    if name is None:
        return None
    header = file.headers[name]
    if header.dtype != np.uint8 or len(header.shape) not in (3, 4) or name == "data":
        known = name == "data" or header.dtype.kind == "f" or (header.dtype == np.uint8 and len(header.shape) == 2)
        return "values" if known or suffix_of(path) != ".npz" else "pictures"
    return "pictures"


def _main(file: ArrayFile, asked: str | None) -> str | None:
    if asked is None and suffix_of(file.path) == ".npy":
        asked = file.path.stem
    return chosen_array(file, "image", asked, _VALUES)


def load_values(
    path: Path,
    rule: Rule | None = None,
    *,
    image: str | None = None,
    label: str | None = None,
    condition: Sequence[str] | None = None,
    max_gb: float | None = None,
) -> Values:
    """The values in an .npy, .npz or .safetensors: floats or uint8 (N, D), (N, C, L) or (N, C, H, W), memory-mapped where the
    file is not packed.

    rule: of the scaling (`ctm.data.values.scaled_values`). image: name of the array, None: data, images or arr_0; floats called
    images, or arr_0 with four axes and 1 or 3 at the end, are taken as they are, channels in front. label: name of the array of
    labels, None: labels or arr_1 where they are there. condition: names of arrays of real numbers (N, …) that are fields of the
    condition. Beside an .npy, arrays are files: observation.npy in its folder is the array observation; labels are read where
    `label` names them. Each of the set's notes goes to the log once. Raises FileNotFoundError, and ValueError with a sentence
    for anything that cannot be taken."""
    file = open_arrays(path, max_gb)
    name = _main(file, image)
    if name is None:
        raise ValueError(
            f"{path} holds the arrays {', '.join([*file.headers, *file.objects]) or 'none'}: the items must be called data, or "
            f"named by {option('image')}"
        )
    header = file.headers[name]
    check_values(header.dtype, header.shape, f"{path} ({name})")
    sides = header.shape[1:]
    if name != "data" and len(sides) == 3 and sides[2] in (1, 3) and sides[0] > sides[2]:
        raise ValueError(
            f"{path}: images must be uint8 (N, H, W, C), and {name} is {header.dtype} {header.shape}. Floats are taken with the "
            "channels in front, (N, C, H, W): move the last axis there and call the array data"
        )
    count = header.shape[0]
    used = {name}
    labels, names, notes = _labels(file, label, count, used)
    asked = [str(chosen_array(file, "condition", each, ())) for each in condition or ()]
    fields, absences = read_fields(file, asked, count)
    notes += absences + _others(file, used | set(fields), label, count)
    found = scaled_values(
        file.map(name),
        rule,
        name=str(path),
        labels=labels,
        class_names=names,
        source=f"{count} items of shape {tuple(header.shape[1:])} in {path}",
        notes=notes,
        fields=fields,
    )
    tell([printable(line) for line in found.notes], str(path))
    return found


def _label_name(file: ArrayFile, asked: str | None) -> str | None:
    return chosen_array(file, "label", asked, () if suffix_of(file.path) == ".npy" else _LABELS)


def _labels(
    file: ArrayFile, asked: str | None, count: int, used: set[str]
) -> tuple[np.ndarray | None, list[str], list[str]]:
    """(labels int64 (count,) or None, class names, notes). used: the names of the arrays that are read, to which it adds."""
    name = _label_name(file, asked)
    if name is None:
        return None, [], []
    header = file.headers[name]
    if not could_be_labels(header.shape, "i" if header.dtype.kind == "f" else header.dtype.kind, count):
        raise ValueError(
            f"{file.path}: labels must be {count} whole numbers, got {header.dtype} {header.shape} ({name})"
        )
    labels, names, notes = read_labels(file.read(name), count, f"{file.path} ({name})")
    if labels is not None and not names and _NAMES in file.headers and suffix_of(file.path) != ".npy":
        names = read_class_names(file, int(labels.max()))
        used.add(_NAMES)
    return labels, names, notes


def _others(file: ArrayFile, used: set[str], label: str | None, count: int) -> list[str]:
    """Lines that name the arrays that are not read; none beside an .npy, where they are other files."""
    if suffix_of(file.path) == ".npy":
        return []
    name = _label_name(file, label)
    left = {each: header for each, header in file.headers.items() if each not in (*used, name)}
    able = [each for each, header in left.items() if could_be_labels(header.shape, header.dtype.kind, count)]
    lines = [without_labels(able)] if name is None and able else []
    shown = [f"{each} ({header})" for each, header in left.items() if name is not None or each not in able]
    return lines + ([f"not read: {', '.join([*shown, *file.objects])}"] if shown or file.objects else [])
