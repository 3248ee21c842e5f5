"""The fields of the samples' conditions: from the reference's rows, from a file, or none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from ctm.conditioner import Conditioner
from ctm.conditions import LABELS, Condition
from ctm.data import Dataset
from ctm.data.conditions import fields_digest, fields_for, load_fields, names_of
from ctm.data.notes import tell
from ctm.evaluation.sources import label_rows

__all__ = [
    "PAIRED",
    "FieldsFrom",
    "FileFields",
    "check_fields",
    "fields_from",
    "rule_of",
    "sample_fields",
    "with_labels",
]

PAIRED = "the fields and the label of a sample are those of one row of the reference, by number"
_NONE = "without fields"


@dataclass(frozen=True)
class FileFields:
    """The fields of an .npz, (N, …) each, whose rows are given to the samples in turn. name: the file's."""

    values: Mapping[str, np.ndarray]
    name: str

    @property
    def count(self) -> int:
        """Its number of rows."""
        return len(next(iter(self.values.values())))


FieldsFrom: TypeAlias = Literal["data", "none"] | FileFields


def fields_from(text: str | None, takes: Mapping[str, tuple[int, ...]]) -> FieldsFrom:
    """What --condition says: None or data, none, or the name of an .npz. takes: the fields of the models, names to shapes. Lines
    say what the file lacks or has besides. Raises ValueError and FileNotFoundError for a file that does not fit."""
    if text in (None, "data"):
        return "data"
    if not takes:
        raise ValueError(f"--condition {text}: there is no model with fields here, leave it out")
    if text == "none":
        return "none"
    if not Path(str(text)).is_file():
        raise FileNotFoundError(
            f"--condition {text}: there is no such file. It is data, none, or an .npz with {', '.join(takes)}. Which arrays of "
            f"--data are read, --data_condition {','.join(takes)} says; without it all of these names are"
        )
    values, lines = load_fields(str(text), takes)
    tell(lines, str(text))
    return FileFields(values, Path(str(text)).name)


def rule_of(given: FieldsFrom, images: Dataset | None) -> str | None:
    """What a protocol says of the fields; None where samples have none and nothing was asked for."""
    if isinstance(given, FileFields):
        return f"the {given.count} rows of a file in turn, sha256 {fields_digest(given.values)[:16]}"
    if given == "none":
        return _NONE
    return PAIRED if images is not None and images.fields else None


def check_fields(given: FieldsFrom, images: Dataset | None, model: object, who: str, labels: str) -> list[str]:
    """Lines that say which fields are left out for a model. labels: how classes are drawn, data or uniform.

    Raises ValueError for a field of another shape, and where classes are drawn apart from the fields of the data's rows."""
    if given == "none":
        return []
    data = "the data" if images is None else images.name
    held = given.values if isinstance(given, FileFields) else {} if images is None else images.fields
    used, lines = fields_for(
        _conditioner(model), held, data=given.name if isinstance(given, FileFields) else data, who=who
    )
    if given == "data" and used and labels == "uniform" and _conditioner(model).num_classes:
        raise ValueError(
            f"--labels uniform draws classes apart from the rows that {', '.join(names_of(used))} come from: leave it out, or "
            "give --condition none or FILE.npz"
        )
    return lines


def sample_fields(
    given: FieldsFrom, images: Dataset | None, model: object, count: int, seed: int
) -> dict[str, np.ndarray]:
    """The fields of `count` samples, (count, …) each, as far as the model takes them. Of the data they are the fields of the rows
    whose labels `ctm.evaluation.sources.data_labels` gives under this seed. Raises ValueError for another shape."""
    if given == "none" or (given == "data" and images is None):
        return {}
    if isinstance(given, FileFields):
        held, rows, name = given.values, np.arange(count) % given.count, given.name
    else:
        assert images is not None
        held, rows, name = images.fields, label_rows(images, count, seed), images.name
    used, _ = fields_for(_conditioner(model), held, data=name)
    return {field: np.ascontiguousarray(values[rows]) for field, values in used.items()}


def with_labels(fields: Mapping[str, np.ndarray], labels: Tensor | None) -> Condition:
    """One condition of fields (N, …) and labels (N,), which are None where there are no classes."""
    if not fields:
        return labels
    given = {name: torch.from_numpy(values) for name, values in fields.items()}
    return given if labels is None else {**given, LABELS: labels}


def _conditioner(model: object) -> Conditioner:
    return getattr(model, "conditioner", None) or Conditioner(int(getattr(model, "num_classes", 0) or 0))
