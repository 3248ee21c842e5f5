"""A file of latents written: one safetensors file, with labels, embedded texts and fields of a condition beside the latents."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ctm.files import named_failures, whole_file
from ctm.models.pipeline import Pipeline

__all__ = ["FIELD", "FORMAT", "Beside", "latents_file", "write_latents"]

FORMAT = "ctm-latents"
FIELD = "field."  # before the names of fields of a condition
_NAMES = {"int64": "I64", "float32": "F32", "bool": "BOOL"}  # in this order in the file, so that all are aligned
_BLOCK = 1 << 24  # bytes copied together
Beside = Mapping[str, Any]  # arrays (N, …) or like them, by name


def latents_file(
    path: Path,
    shape: tuple[int, ...],
    beside: Beside,
    *,
    class_names: Sequence[str] = (),
    about: Mapping[str, object] | None = None,
    pipeline: Pipeline | None = None,
    go_on: bool = False,
) -> np.memmap:
    """A file of latents of zeros, its latents memory-mapped to be written: float32 of `shape` (N, c, h, w). Its place on the
    disk is reserved.

    beside: labels int64 (N,); texts float32 (M, tokens, dim) and text_rows int64 (N,); field.NAME float32 (N, …), and of fields
    bool flags. about: what they were made of, as JSON, which a person can read. pipeline: of whose folders, beside the file,
    samples are decoded. go_on: the file is there and was begun by the same call. Raises OSError, which names the file."""
    kinds = {"latents": (np.dtype(np.float32), shape)} | {name: (v.dtype, v.shape) for name, v in beside.items()}
    header: dict[str, Any] = {"__metadata__": _metadata(class_names, about, pipeline)}
    places, end = {}, 0
    for kind in _NAMES:
        for name, (dtype, sides) in kinds.items():
            if dtype == kind:
                begin, end = end, end + dtype.itemsize * int(np.prod(sides, dtype=np.int64))
                header[name] = {"dtype": _NAMES[kind], "shape": list(sides), "data_offsets": [begin, end]}
                places[name] = begin
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    start = 8 + len(text)
    with named_failures(path):
        if not go_on:
            with path.open("wb") as file:
                file.write(len(text).to_bytes(8, "little") + text)
                file.truncate(start + end)
                if hasattr(os, "posix_fallocate"):  # writing to a mapped file without place kills the process
                    os.posix_fallocate(file.fileno(), 0, start + end)
            for name, values in beside.items():
                _copy(values, np.memmap(path, values.dtype, "r+", start + places[name], tuple(values.shape)))
        return np.memmap(path, np.float32, "r+", start + places["latents"], shape)


def _metadata(
    class_names: Sequence[str], about: Mapping[str, object] | None, pipeline: Pipeline | None
) -> dict[str, str]:
    kept = {"format": FORMAT, "class_names": json.dumps(list(class_names)), "about": json.dumps(about or {})}
    return kept if pipeline is None else {**kept, "pipeline": json.dumps(pipeline.as_json())}


def _copy(values: Any, target: np.memmap) -> None:
    rows = max(1, _BLOCK // max(values[:1].nbytes, 1))
    for start in range(0, len(values), rows):
        target[start : start + rows] = values[start : start + rows]
    target.flush()


def write_latents(
    path: Path,
    latents: np.ndarray,
    beside: Beside | None = None,
    *,
    class_names: Sequence[str] = (),
    about: Mapping[str, object] | None = None,
) -> None:
    """Write latents float32 (N, c, h, w), whole or not at all. The others as of `latents_file`."""
    with whole_file(path) as new:
        _copy(latents, latents_file(new, latents.shape, beside or {}, class_names=class_names, about=about))
