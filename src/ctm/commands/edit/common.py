"""What every kind of edit shares: options, conditions, progress bar, and the results for the files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jsonargparse import Namespace
from torch import Tensor

from ctm.commands.fields import add_condition_option, condition_of_rows
from ctm.commands.screened import add_policy_options
from ctm.conditions import Condition, to
from ctm.models import AnyModel, ConsistencyModel
from ctm.progress import JobBar
from ctm.sampling import class_labels
from ctm.sampling.common import Step
from ctm.terminal.options import add_device_option, parse_labels
from ctm.terminal.parser import Parser, command_parser

__all__ = [
    "Asked",
    "Edited",
    "asked_for",
    "asked_of_pictures",
    "bar",
    "each_condition",
    "edit_parser",
    "expected",
    "making",
    "needs_denoiser",
    "of_steps",
    "reports",
]

PICTURE = "a picture file of any size and mode"


@dataclass(frozen=True)
class Edited:
    """Results of an edit, with all pictures in [-1, 1]. before, after: names and pictures (C, h, w) shown beside the results
    (N, C, H, W). captions: one for each result. facts: how the results were made, for edit.json. makings: how each was made, for
    its claim (sampler, steps, gamma, grid, condition …). numbers, files: where a policy decides, which results these are and the
    PNG file of each; None for 0 … N − 1, and for files of the pixels alone."""

    before: list[tuple[str, Tensor]]
    results: Tensor
    captions: list[str]
    after: list[tuple[str, Tensor]] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    makings: list[dict[str, Any]] = field(default_factory=list)
    numbers: list[int] | None = None
    files: list[bytes] | None = None


def edit_parser(
    name: str, description: str, example: str, *images: str, labels: str | None = None, rows: str = "results"
) -> Parser:
    """A parser with the options that all edits have. labels: the help text of --labels, where it differs; rows: what gets the
    rows of --condition."""
    result = command_parser(f"edit {name}", description, f"ctm edit {name} {example}")
    add = result.add_argument
    add("model", type=str, help="model directory, run directory or hub id")
    for image in images:
        add(image, type=str, help=PICTURE)
    several = "classes of the results, repeated over them: 3, 0-9, names or all (default: no class)"
    add("--labels", "--label", type=str, default=None, help=labels or several)
    add_condition_option(result, rows)
    add("--seed", type=int, default=0, help="result i depends on (seed, i) alone")
    add(
        "--out",
        type=str,
        default="edit.png",
        help="FILE.png (a captioned strip) or a directory (PNG files and edit.json)",
    )
    add_policy_options(result)
    add_device_option(result)
    return result


@dataclass(frozen=True)
class Asked:
    """What an edit is asked for. count: results; labels: their classes, int64 (N,) or None; condition: of N rows, on the model's
    device, or None."""

    count: int
    labels: Tensor | None
    condition: Condition

    @property
    def facts(self) -> dict[str, list[int] | None]:
        """What edit.json keeps of it."""
        return {"labels": None if self.labels is None else self.labels.tolist()}


def asked_for(model: AnyModel, settings: Namespace, num: int | None, default: int = 4) -> Asked:
    """What is asked for results whose classes and fields are given in turn. num: the number of results; None: one for each class
    or row of fields, else `default`. Raises ValueError for a class that the model does not know and for a number below 1."""
    cycle = None if settings.labels is None else parse_labels(settings.labels, model.num_classes, model.class_names)
    rows = len(cycle) if cycle else _rows_of(settings.fields) or default
    count = rows if num is None else num
    if count < 1:
        raise ValueError(f"--num must be at least 1, got {count}")
    labels = None if cycle is None else torch.tensor([cycle[i % len(cycle)] for i in range(count)])
    return _asked(model, settings, count, labels)


def asked_of_pictures(model: AnyModel, settings: Namespace, pictures: int) -> Asked:
    """What is asked where each given picture has its own class and its own row of fields. Raises ValueError for other numbers of
    them."""
    wanted = "one {}, the picture's" if pictures == 1 else "two {}, those of both pictures"
    rows = _rows_of(settings.fields)
    if rows not in (0, pictures):
        raise ValueError(
            f"--condition of {settings.task} takes {wanted.format('row' if pictures == 1 else 'rows')}, and "
            f"{settings.condition} has {rows}"
        )
    if settings.labels is None:
        return _asked(model, settings, pictures, None)
    given = parse_labels(settings.labels, model.num_classes, model.class_names)
    if len(given) != pictures:
        named = wanted.format("class" if pictures == 1 else "classes")
        raise ValueError(f"--labels of {settings.task} takes {named}, got {settings.labels!r}")
    return _asked(model, settings, pictures, torch.tensor(given))


def _asked(model: AnyModel, settings: Namespace, count: int, labels: Tensor | None) -> Asked:
    labels = None if labels is None else class_labels(model, count, labels)
    condition = condition_of_rows(labels, settings.fields, count)
    return Asked(count, labels, to(condition, next(model.parameters()).device))


def _rows_of(fields: Mapping[str, np.ndarray]) -> int:
    return len(next(iter(fields.values()))) if fields else 0


def expected(model: AnyModel, settings: Namespace) -> int:
    """The number of results there will be."""
    if settings.task == "denoise":
        return 1 + settings.num
    return asked_for(model, settings, None).count if settings.num is None else int(settings.num)


def making(sampler: str, grid: Tensor, condition: int | None = None, gamma: float = 0.0, **more: Any) -> dict[str, Any]:
    """How a result was made, in the words of a claim: by a sampler from grid[0] down the levels (steps + 1,)."""
    levels = [float(f"{level:.6g}") for level in grid.tolist()]
    about = {"sampler": sampler, "steps": len(levels) - 1, "gamma": gamma, "grid": levels, "condition": condition}
    return about | {name: value for name, value in more.items() if value is not None}


def each_condition(labels: Tensor | None, count: int) -> list[int | None]:
    """The class of each of count results, None without one."""
    return [None] * count if labels is None else labels.tolist()


def reports(labels: Tensor | None, count: int) -> list[str]:
    """One caption for each result: its number, or its class."""
    return [str(i + 1) for i in range(count)] if labels is None else [f"class {label}" for label in labels.tolist()]


def needs_denoiser(model: AnyModel, settings: Namespace) -> None:
    """Raises ValueError for a consistency model: its `denoise` gives the end of the trajectory, not the denoised image."""
    if isinstance(model, ConsistencyModel):
        raise ValueError(
            f"{settings.model} is a consistency model, which knows no flow between its ends: use a CTM or a diffusion model"
        )


@contextmanager
def bar(words: str) -> Iterator[Callable[[float], None]]:
    """A progress bar on a terminal, a line now and then elsewhere. The function that it gives takes the share done, in [0,
    1]."""
    with JobBar(words, 100, unit="%") as progress:
        yield lambda share: progress.reach(round(100 * share))


def of_steps(advance: Callable[[float], None], total: int) -> Callable[[Step], None]:
    """A sampler's callback that advances a bar over so many steps."""
    return lambda step: advance((step.index + 1) / total)
