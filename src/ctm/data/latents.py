"""Latents that a model is distilled on, in one safetensors file with their labels and the embedded texts of their captions."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from ctm.conditions import PRESENT
from ctm.data.images import Images
from ctm.data.mapped import check_unchanged, watched
from ctm.data.notes import option
from ctm.files import suffix_of, whole_file
from ctm.foreign.text import parse_json
from ctm.foreign.weights import tensor_shapes

__all__ = ["Latents", "RowsOf", "Texts", "holds_latents", "load_latents", "text_fields", "write_latents"]

_FORMAT = "ctm-latents"
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


def text_fields(texts: Texts) -> dict[str, np.ndarray]:
    """The texts as the field "text" of a condition, and where it is there, if not everywhere."""
    there = texts.numbers >= 0
    fields: dict[str, Any] = {_TEXT: RowsOf(texts.table, np.maximum(texts.numbers, 0))}
    return fields if bool(there.all()) else {**fields, _TEXT + PRESENT: there}


@dataclass(frozen=True)
class Latents(Images):
    """Latents as a data set: `pixels` is float32 (N, c, h, w), what a model denoises as it is. The rest as of `Images`."""

    def __post_init__(self) -> None:
        if self.pixels.ndim != 4 or self.pixels.dtype != np.float32 or len(self.pixels) == 0:
            raise ValueError(
                f"latents must be float32 (N, c, h, w), N ≥ 1, got {self.pixels.dtype} {self.pixels.shape}"
            )
        beside = {"labels": self.labels} if self.labels is not None else {}
        for name, values in {**beside, **self.fields}.items():
            if len(values) != len(self.pixels):
                raise ValueError(f"{self.name}: there are {len(self.pixels)} latents and {len(values)} rows of {name}")

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


def write_latents(
    path: Path,
    latents: np.ndarray,
    *,
    texts: Texts | None = None,
    labels: np.ndarray | None = None,
    class_names: Sequence[str] = (),
    about: Mapping[str, object] | None = None,
) -> None:
    """Write latents float32 (N, c, h, w) with their texts and labels (N,), whole or not at all. about: what they were made of, as
    JSON, which a person can read."""
    tensors = {"latents": torch.from_numpy(np.ascontiguousarray(latents))}
    if texts is not None:
        tensors |= {
            "texts": torch.from_numpy(texts.table),
            "text_rows": torch.from_numpy(texts.numbers.astype(np.int64)),
        }
    if labels is not None:
        tensors["labels"] = torch.from_numpy(labels.astype(np.int64))
    kept = {"format": _FORMAT, "class_names": json.dumps(list(class_names)), "about": json.dumps(about or {})}
    with whole_file(path) as new:
        mode = new.stat().st_mode
        save_file(tensors, new, metadata=kept)
        new.chmod(mode)


def holds_latents(path: Path) -> bool:
    """Whether a file is one of `write_latents`, by its header. Raises ValueError for a damaged safetensors file."""
    return suffix_of(path) == ".safetensors" and path.is_file() and "latents" in tensor_shapes(path)


def load_latents(path: Path, asked: Mapping[str, object] | None = None) -> Latents:
    """The latents of a file that `write_latents` wrote. What is large stays on the disk and is read where it is used.

    asked: settings of data by name, which are for pictures: None each. Raises ValueError for one that is not, and, naming the
    file, for arrays of other names, shapes or types."""
    for name, value in (asked or {}).items():
        if value is not None:
            raise ValueError(
                f"{option(name, value)} is for pictures, and {path} holds latents as they are: leave it out"
            )
    shapes = tensor_shapes(path)
    unknown = sorted(set(shapes) - {"latents", "texts", "text_rows", "labels"})
    if unknown or "latents" not in shapes or ("texts" in shapes) != ("text_rows" in shapes):
        raise ValueError(
            f"{path} holds {', '.join(sorted(shapes))}: a file of latents has latents, labels, texts and text_rows"
        )
    tensors = load_file(path)
    wanted = {
        "latents": (torch.float32, 4),
        "texts": (torch.float32, 3),
        "text_rows": (torch.int64, 1),
        "labels": (torch.int64, 1),
    }
    for name, tensor in tensors.items():
        if (tensor.dtype, tensor.dim()) != wanted[name]:
            raise ValueError(
                f"{path}: {name} is {tensor.dtype} {tuple(tensor.shape)}, and such a file has {wanted[name]}"
            )
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    arrays["latents"] = watched(arrays["latents"], path)
    count = len(arrays["latents"])
    if any(len(arrays[name]) != count for name in ("text_rows", "labels") if name in arrays):
        raise ValueError(f"{path}: latents, labels and text_rows differ in number")
    fields: dict[str, np.ndarray] = {}
    if "texts" in arrays:
        numbers = arrays["text_rows"]
        if count and not -1 <= int(numbers.min()) <= int(numbers.max()) < len(arrays["texts"]):
            raise ValueError(f"{path}: text_rows must be −1 … {len(arrays['texts']) - 1}")
        fields = text_fields(Texts(arrays["texts"], numbers))
    names = _class_names(path)
    return Latents(arrays["latents"], arrays.get("labels"), names, str(path), f"{count} latents in {path}", (), fields)


def _class_names(path: Path) -> list[str]:
    with safe_open(path, framework="pt") as opened:
        names = parse_json((opened.metadata() or {}).get("class_names", "[]"), str(path))
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{path}: its class_names are no texts")
    return cast(list[str], names)
