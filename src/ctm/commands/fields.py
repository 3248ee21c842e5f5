"""The fields of a model's condition that a command is given in a file: the option, its reading, and what a record keeps."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jsonargparse import Namespace
from torch import Tensor

from ctm.conditions import Condition
from ctm.data.conditions import fields_digest, load_fields
from ctm.data.notes import tell
from ctm.evaluation.conditions import with_labels
from ctm.models import AnyModel
from ctm.terminal.parser import Parser

__all__ = ["add_condition_option", "condition_of_rows", "given_fields", "named_fields"]

_HELP = "an .npz with the arrays of the model's condition, (N, …) each, whose rows are repeated over the "


def add_condition_option(parser: Parser, whose: str) -> None:
    """Add --condition. whose: what gets the rows of the file, such as samples."""
    parser.add_argument("--condition", type=str, default=None, help=_HELP + whose)


def given_fields(settings: Namespace, model: AnyModel) -> dict[str, np.ndarray]:
    """The fields of the condition that --condition names, (N, …) each. Lines say what is left out. Raises ValueError and
    FileNotFoundError for a file that does not fit the model."""
    known = model.conditioner.given_fields
    if settings.condition is None:
        if known:
            tell([f"the model is conditioned on {', '.join(known)}: drawn without (--condition FILE.npz gives it)"])
        return {}
    if not known:
        raise ValueError(f"--condition {settings.condition}: this model takes no fields, leave it out")
    fields, lines = load_fields(settings.condition, known)
    tell(lines, settings.condition)
    return fields


def condition_of_rows(labels: Tensor | None, fields: Mapping[str, np.ndarray], num: int) -> Condition:
    """The condition of num samples: their labels, and the rows of the fields in turn."""
    rows = np.arange(num)
    return with_labels({name: values[rows % len(values)] for name, values in fields.items()}, labels)


def named_fields(settings: Namespace, fields: Mapping[str, np.ndarray]) -> dict[str, dict[str, str]]:
    """What a record keeps of the fields under "condition": the file's name and the content's digest. Nothing where there are
    none."""
    if not fields:
        return {}
    return {"condition": {"file": Path(settings.condition).name, "sha256": fields_digest(fields)}}
