"""Samples that are no pictures against data: the Fréchet distance of their numbers, each standardised by the data."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ctm.conditions import Condition
from ctm.data import Values
from ctm.data.conditions import fields_for
from ctm.data.digest import digest_of
from ctm.data.notes import tell
from ctm.evaluation.classes import UNIFORM, shared_classes
from ctm.evaluation.conditions import FieldsFrom, sample_fields, with_labels
from ctm.evaluation.frechet import frechet, frechet_number
from ctm.evaluation.moments import BLOCKS, BlockMoments
from ctm.evaluation.number import Number
from ctm.evaluation.plans import Plan
from ctm.evaluation.protocol import environment
from ctm.evaluation.sources import data_labels
from ctm.files import write_whole
from ctm.foreign.text import JSONObject
from ctm.models.protocol import Denoiser
from ctm.progress import Progress, silent
from ctm.sampling import class_labels
from ctm.sampling.generation import copy_on
from ctm.scaling import restored

__all__ = ["ValueJudge", "evaluate_values", "few_values", "sample_values"]

_MOST = 4096  # numbers of an item: a covariance of so many takes 134 MB for each of eight blocks
_BATCH = 1000
_WHAT = "Fréchet distance of the items' numbers, each channel standardised by the data's mean and deviation"


class ValueJudge:
    """What samples (N, *shape) are measured with: the Gaussian of the data's numbers.

    Every channel is brought to the data's mean 0 and deviation 1, then an item is one row of numbers; the distance is
    `ctm.evaluation.frechet.frechet` of the rows. `halves`: the distance of the data's two halves, which a perfect model of so
    few items has. Raises ValueError for items of more than 4,096 numbers and for fewer than two items."""

    def __init__(self, data: Values) -> None:
        self.data, self.features = data, math.prod(data.shape)
        if self.features > _MOST:
            raise ValueError(
                f"{data.name}: an item has {self.features} numbers, and a Fréchet distance is measured over at most {_MOST}: "
                "evaluate on what you compute of the samples (ctm sample --out FILE.npz)"
            )
        if len(data) < 2:
            raise ValueError(f"{data.name} holds one item, and a covariance needs two")
        moments = data.moments
        sides = (1, -1, *[1] * (len(data.shape) - 1))
        self._mean = torch.from_numpy(moments.mean).view(sides)
        deviation = np.where(moments.variance > 0, np.sqrt(moments.variance), 1.0)
        self._deviation = torch.from_numpy(deviation).view(sides)
        sums = BlockMoments(self.features)
        for start in range(0, len(data), _BATCH):
            indices = np.arange(start, min(start + _BATCH, len(data)))
            sums.add(self.rows(data.taken(indices)), torch.from_numpy(indices))
        _ = sums.outer
        self.gaussian = sums.gaussian()
        halves = [sums.gaussian(range(start, BLOCKS, 2)) for start in (0, 1)] if len(data) >= 2 * BLOCKS else []
        self.halves = frechet(*halves) if halves else None

    def rows(self, values: Tensor) -> Tensor:
        """float64 (B, F): the numbers of items (B, *shape), standardised."""
        return ((values.double() - self._mean) / self._deviation).flatten(1)

    def distance(self, samples: Tensor) -> Number:
        """The Fréchet distance of samples (N, *shape), in the numbers of the data, to the data, with its error bar. Raises
        ValueError for samples of another shape."""
        if tuple(samples.shape[1:]) != self.data.shape or len(samples) < 2:
            raise ValueError(f"samples must be (N, {', '.join(map(str, self.data.shape))}), got {tuple(samples.shape)}")
        sums = BlockMoments(self.features)
        for start in range(0, len(samples), _BATCH):
            part = samples[start : start + _BATCH]
            sums.add(self.rows(part), torch.arange(start, start + len(part)))
        _ = sums.outer
        return frechet_number(sums, self.gaussian)


def few_values(judge: ValueJudge, num: int) -> list[str]:
    """A sentence where the distance has little meaning: the covariance of so few items is singular."""
    least = min(num, len(judge.data))
    if least > judge.features:
        return []
    return [
        f"{least} items are no more than the {judge.features} numbers of one: their covariance is singular, and the distance is "
        "biased upwards. Compare only distances of equally many"
    ]


def sample_values(
    judge: ValueJudge,
    plan: Plan,
    num: int,
    device: torch.device,
    fields: FieldsFrom = "data",
    labels: str = "data",
    batch_size: int = 250,
) -> Tensor:
    """num samples of a plan's model, in the numbers of the data, (num, *shape) on the CPU; their conditions are those of rows
    of the data, or of a file. labels: "data" draws classes as often as the data have them, matched with the model's by name,
    "uniform" equally often. Raises ValueError for data of a class that the model does not know by name."""
    model, seed = copy_on(plan.subject.model, device), plan.record["seed"]
    condition = _condition(judge.data, model, num, seed, fields, labels)
    source = plan.source(model, num, condition, device)
    batches = range(0, num, batch_size)
    made = [source.batch(np.arange(start, min(start + batch_size, num)))[0].cpu() for start in batches]
    if (
        getattr(plan.subject.model, "scaling", None) is None and judge.data.scaled.rule == "bytes"
    ):  # pictures of many channels
        return judge.data.scaled.undo(torch.cat(made)).round().clamp(0, 255)
    return restored(plan.subject.model, torch.cat(made))


def _condition(data: Values, model: Denoiser, num: int, seed: int, given: FieldsFrom, rule: str) -> Condition:
    """The fields and labels of `num` samples, labels in the model's numbers. Where the fields are those of the data's rows and
    the rows' classes are not known to the model, it gets no class."""
    shared = shared_classes(data, model, strict=rule == "data", quiet=True, remedy=UNIFORM)
    drawn = data_labels(data, num, seed) if rule == "data" and shared is not None else None
    labels = class_labels(model, num, None if drawn is None or shared is None else shared.of_model(drawn), seed)
    fields = sample_fields(given, data, model, num, seed)
    if fields and given == "data" and labels is not None and shared is None:
        labels = torch.full_like(labels, -1)
    return with_labels(fields, labels)


def evaluate_values(
    judge: ValueJudge,
    plans: Sequence[Plan],
    out: Path,
    *,
    num: int,
    device: torch.device,
    fields: FieldsFrom = "data",
    labels: str = "data",
    samples: Tensor | None = None,
    batch_size: int = 250,
    progress: Progress = silent,
) -> JSONObject:
    """The distance of every plan's samples, and of given ones, (N, *shape); result.json in `out` holds it with the protocol.
    labels: as of `sample_values`; a line says which classes were matched. Raises ValueError for samples that are no numbers, and
    for a model of another shape or of other classes."""
    if labels not in ("data", "uniform"):
        raise ValueError(f"--labels must be data or uniform, got {labels!r}")
    for plan in plans:  # all of them, before anything is sampled
        who = f"the {plan.record['role']}"
        shared_classes(judge.data, plan.subject.model, who=who, strict=labels == "data", remedy=UNIFORM)
    rows: list[JSONObject] = []
    for index in progress(range(len(plans)), "evaluating"):
        plan = plans[index]
        if tuple(plan.subject.model.shape) != judge.data.shape:
            raise ValueError(f"the model's samples are {plan.subject.model.shape}, the data {judge.data.shape}")
        kept = fields_for(plan.subject.model.conditioner, judge.data.fields, data=judge.data.name)[1]
        tell(kept if fields == "data" else [], plan.subject.name)
        made = sample_values(judge, plan, num, device, fields, labels, batch_size)
        rows.append({**plan.record, "title": plan.title, **_measured(judge, made)})
    if samples is not None:
        rows.append({"role": "samples", "title": "samples", **_measured(judge, samples)})
    about = {"name": judge.data.name, "items": len(judge.data), "digest": digest_of(judge.data).value}
    result: JSONObject = {"measure": _WHAT, "numbers_of_an_item": judge.features, "data": about, "halves": judge.halves}
    result |= {"num": num, "labels": labels, "environment": environment(device, 1), "rows": rows}
    write_whole(out / "result.json", (json.dumps(result, indent=2) + "\n").encode())
    return result


def _measured(judge: ValueJudge, samples: Tensor) -> JSONObject:
    if not bool(samples.isfinite().all()):
        raise ValueError(
            "the samples are no finite numbers: a setting of the sampler is too large, or the weights are not finite"
        )
    found = judge.distance(samples)
    return {"count": len(samples), "frechet": {"value": found.value, "error": found.error, "text": str(found)}}
