"""`ctm evaluate` on data that are no pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jsonargparse import Namespace

from ctm.console import text_console
from ctm.data import Values, load_dataset, load_images, scaled_values
from ctm.data.dataset import holds_values
from ctm.evaluation.conditions import FieldsFrom, check_fields
from ctm.evaluation.passes import Processes
from ctm.evaluation.plans import Plan
from ctm.evaluation.values import ValueJudge, evaluate_values, few_values
from ctm.progress import silent, tracked_parts

__all__ = ["evaluate_on_values"]


def evaluate_on_values(
    settings: Namespace, plans: Sequence[Plan], fields: FieldsFrom, reading: dict[str, Any], processes: Processes
) -> None:
    """Print and write the Fréchet distances of the plans' samples, and of --samples, to --data. One process computes. Raises
    ValueError for options that are of pictures, and for data and samples that do not fit."""
    if settings.likelihood:
        raise ValueError(
            "--likelihood is bits per dimension of pictures, and the data are arrays of numbers: leave it out"
        )
    for name in ("features", "rows", "side", "classifier"):
        if settings[name] is not None:
            raise ValueError(
                f"--{name} {settings[name]} is of networks that look at pictures, and the data are arrays of numbers, measured "
                "as they are: leave it out"
            )
    if settings.caption is not None:
        raise ValueError(f"--caption {settings.caption}: no model here takes prompts, leave it out")
    if settings.num < 2:
        raise ValueError(f"--num must be at least 2, got {settings.num}")
    if processes.index == 0:
        _evaluate(settings, plans, fields, reading, processes.device)
    processes.wait()


def _evaluate(
    settings: Namespace, plans: Sequence[Plan], fields: FieldsFrom, reading: dict[str, Any], device: torch.device
) -> None:
    data = _values(settings.data, plans, reading, settings.split)
    samples = None if settings.samples is None else _samples(settings.samples, data)
    for plan in plans:
        check_fields(fields, data, plan.subject.model, f"the {plan.record['role']}", settings.labels)
    judge = ValueJudge(data)
    options: dict[str, Any] = {"num": settings.num, "device": device, "fields": fields, "samples": samples}
    options["labels"] = settings.labels
    result = evaluate_values(
        judge,
        plans,
        Path(settings.out),
        batch_size=settings.batch_size,
        progress=tracked_parts if plans else silent,
        **options,
    )
    console = text_console(wide=True)
    for row in result["rows"]:
        console.print(f"{row['title']}: Fréchet {row['frechet']['text']} on {row['count']} samples")
    for line in few_values(judge, min([settings.num, *([] if samples is None else [len(samples)])])):
        console.print(line)
    if judge.halves is not None:
        console.print(f"the data's two halves: {judge.halves:.4g}. It is the {result['measure']}")
    console.print(f"result: {Path(settings.out) / 'result.json'}")


def _values(name: str, plans: Sequence[Plan], reading: dict[str, Any], split: str | None) -> Values:
    """The data, pictures of many channels as fields of their 0 … 255."""
    if holds_values(name, reading.get("image")):
        if split is not None:
            raise ValueError(f"--split {split}: {name} is a file of arrays, which has no splits: leave it out")
        found = load_dataset(name, **reading)
        assert isinstance(found, Values)
        return found
    pictures = load_images(name, list(plans[0].subject.model.shape[1:]), None, split, **reading)
    about: dict[str, Any] = {"name": pictures.name, "labels": pictures.labels, "class_names": pictures.class_names}
    about["fields"] = pictures.fields
    return scaled_values(np.moveaxis(pictures.pixels, -1, 1), "bytes", source=pictures.source, **about)


def _samples(name: str, data: Values) -> torch.Tensor:
    found = load_dataset(name, scaling="none")
    if not isinstance(found, Values) or found.shape != data.shape:
        raise ValueError(f"the samples are {found.shape} and the data {data.shape}: give samples of the data's shape")
    return found.all()[0]
