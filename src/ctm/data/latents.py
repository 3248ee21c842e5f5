"""Latents that a model is trained on, in one safetensors file with their labels, the embedded texts of their captions and fields
of a condition."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from ctm.conditions import MASK, PRESENT
from ctm.data.images import Images
from ctm.data.latent_files import FIELD
from ctm.data.mapped import check_unchanged, watched
from ctm.data.notes import option, tell
from ctm.files import suffix_of
from ctm.foreign.text import parse_json, plain
from ctm.foreign.weights import tensor_shapes
from ctm.models.pipeline import Pipeline, pipeline_from

__all__ = [
    "FILE",
    "Latents",
    "RowsOf",
    "Texts",
    "holds_latents",
    "latents_in",
    "load_latents",
    "text_arrays",
    "text_fields",
]

FILE = "latents.safetensors"  # in a directory of `ctm latents`
_TEXT = "text"
_BLOCK = 1 << 24  # bytes looked at together


class RowsOf:
    """An array (N, …) whose row i is row numbers[i] of a smaller one: the embedded texts of captions that many pictures share.

    It is read like an array: len, shape, dtype, and rows by number, slice or array of numbers."""

    def __init__(self, table: np.ndarray, numbers: np.ndarray) -> None:
        self.table, self.numbers = table, numbers
        self.shape, self.dtype = (len(numbers), *table.shape[1:]), table.dtype
        self.ndim = table.ndim

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, rows: Any) -> np.ndarray:
        return np.asarray(self.table[self.numbers[rows]])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self[:].astype(self.dtype if dtype is None else dtype)

    def tobytes(self) -> bytes:
        """The bytes of all rows."""
        return self[:].tobytes()


@dataclass(frozen=True)
class Texts:
    """The embedded texts of N pictures. table: (M, tokens, dim) float32, each text once. numbers: int64 (N,), the row of each
    picture's text in it, −1 for a picture without one."""

    table: np.ndarray
    numbers: np.ndarray


def text_arrays(texts: Texts | None) -> dict[str, np.ndarray]:
    """The texts as a file of latents has them."""
    return {} if texts is None else {"texts": texts.table, "text_rows": texts.numbers.astype(np.int64)}


def text_fields(texts: Texts) -> dict[str, np.ndarray]:
    """The texts as the field "text" of a condition, and where it is there, if not everywhere."""
    there = texts.numbers >= 0
    fields: dict[str, Any] = {_TEXT: RowsOf(texts.table, np.maximum(texts.numbers, 0))}
    return fields if bool(there.all()) else {**fields, _TEXT + PRESENT: there}


@dataclass(frozen=True)
class Latents(Images):
    """Latents as a data set: `pixels` is float32 (N, c, h, w), what a model denoises as it is. pipeline: the autoencoder that
    they were made by and that decodes samples, None where it is not known. The rest as of `Images`."""

    pipeline: Pipeline | None = None

    def __post_init__(self) -> None:
        if self.pixels.ndim != 4 or self.pixels.dtype != np.float32 or len(self.pixels) == 0:
            raise ValueError(
                f"latents must be float32 (N, c, h, w), N ≥ 1, got {self.pixels.dtype} {self.pixels.shape}"
            )
        beside = {"labels": self.labels} if self.labels is not None else {}
        for name, values in {**beside, **self.fields}.items():
            if len(values) != len(self.pixels):
                raise ValueError(f"{self.name}: there are {len(self.pixels)} latents and {len(values)} rows of {name}")
        self.check_condition()

    @property
    def shape(self) -> tuple[int, int, int]:
        """(c, h, w) of one."""
        _, channels, height, width = self.pixels.shape
        return channels, height, width

    def batch(self, indices: np.ndarray) -> tuple[Tensor, Tensor | None]:
        """Latents `indices` as float32 (B, c, h, w), and their labels int64 (B,) or None."""
        check_unchanged(self.pixels)
        labels = None if self.labels is None else torch.from_numpy(self.labels[indices].astype(np.int64))
        return torch.from_numpy(np.ascontiguousarray(self.pixels[indices])), labels

    def deviation(self) -> float:
        """The standard deviation of all values, to four digits after the point. Raises ValueError where all are equal
        or one is not finite."""
        total = square = 0.0
        rows = max(1, _BLOCK // max(self.pixels[0].nbytes, 1))
        for start in range(0, len(self), rows):
            block = self.pixels[start : start + rows].astype(np.float64)
            total, square = total + float(block.sum()), square + float((block**2).sum())
        count = self.pixels.size
        if not math.isfinite(square):
            raise ValueError(f"{self.name} has latents that are no finite numbers: look at the data")
        found = round(max(square / count - (total / count) ** 2, 0.0) ** 0.5, 4)
        if found <= 0:
            raise ValueError(f"all latents of {self.name} have the same value: look at the data")
        return found


def latents_in(path: Path) -> Path:
    """The file of latents of that name: itself, or in a directory of `ctm latents` latents.safetensors."""
    return path / FILE if path.is_dir() else path


def holds_latents(path: Path) -> bool:
    """Whether a file, or a directory, is one of latents, by its header. Raises ValueError for a damaged safetensors file."""
    file = latents_in(path)
    return suffix_of(file) == ".safetensors" and file.is_file() and "latents" in tensor_shapes(file)


def load_latents(path: Path, asked: Mapping[str, object] | None = None) -> Latents:
    """The latents of a file, or of a directory of `ctm latents`. What is large stays on the disk and is read where it is used.

    asked: settings of data by name, which are for pictures: None each. Raises ValueError for one that is not, and, naming the
    file, for arrays of other names, shapes or types."""
    for name, value in (asked or {}).items():
        if value is not None:
            raise ValueError(
                f"{option(name, value)} is for pictures, and {path} holds latents as they are: leave it out"
            )
    file = latents_in(path)
    shapes = tensor_shapes(file)
    named = {name for name in shapes if name.startswith(FIELD)}
    unknown = sorted(set(shapes) - named - {"latents", "texts", "text_rows", "labels"})
    if unknown or "latents" not in shapes or ("texts" in shapes) != ("text_rows" in shapes):
        raise ValueError(
            f"{file} holds {', '.join(sorted(map(plain, shapes)))}: a file of latents has latents, labels, texts and text_rows"
        )
    arrays = {name: tensor.numpy() for name, tensor in load_file(file).items() if _checked(name, tensor, file)}
    arrays["latents"] = watched(arrays["latents"], file)
    count = len(arrays["latents"])
    if any(len(arrays[name]) != count for name in ("text_rows", "labels") if name in arrays):
        raise ValueError(f"{file}: latents, labels and text_rows differ in number")
    fields: dict[str, np.ndarray] = {}
    if "texts" in arrays:
        numbers = arrays["text_rows"]
        if count and not -1 <= int(numbers.min()) <= int(numbers.max()) < len(arrays["texts"]):
            raise ValueError(f"{file}: text_rows must be −1 … {len(arrays['texts']) - 1}")
        fields = text_fields(Texts(arrays["texts"], numbers))
    fields |= {name.removeprefix(FIELD): arrays[name] for name in sorted(named)}
    names, pipeline = _names_and_pipeline(file)
    notes = []
    if pipeline is not None and pipeline.missing:
        lost = ", ".join(pipeline.missing)
        notes = [f"{lost} is not beside {file.name}: samples stay latents and are not decoded"]
        pipeline = None
        tell(notes, str(path))
    source = f"{count} latents in {path}"
    return Latents(
        arrays["latents"], arrays.get("labels"), names, str(path), source, tuple(notes), fields, pipeline=pipeline
    )


def _checked(name: str, tensor: Tensor, file: Path) -> bool:
    """True. Raises ValueError for a tensor of a type or rank that its name does not have."""
    wanted = {"latents": 4, "texts": 3, "text_rows": 1, "labels": 1}
    dtype = torch.int64 if name in ("text_rows", "labels") else torch.float32
    flag = name.startswith(FIELD) and name.endswith((PRESENT, MASK))
    dtype, rank = torch.bool if flag else dtype, wanted.get(name, max(1, tensor.dim()))
    if (tensor.dtype, tensor.dim()) != (dtype, rank):
        raise ValueError(
            f"{file}: {plain(name)} is {tensor.dtype} {tuple(tensor.shape)}, and such a file has {dtype} with {rank} axes"
        )
    if name.startswith(FIELD) and not flag and not bool(tensor.isfinite().all()):
        raise ValueError(f"{file}: {plain(name)} holds NaN or infinity")
    return True


def _names_and_pipeline(path: Path) -> tuple[list[str], Pipeline | None]:
    """The names of the classes, and the pipeline whose folders are beside the file."""
    with safe_open(path, framework="pt") as opened:
        kept = opened.metadata() or {}
    names = parse_json(kept.get("class_names", "[]"), str(path))
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{path}: its class_names are no texts")
    settings = parse_json(kept["pipeline"], str(path)) if "pipeline" in kept else None
    return cast(list[str], names), pipeline_from(settings, str(path.parent))
