"""An evaluation from start to end: references, samples of every plan, numbers, and the files of the result."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ctm.conditions import Condition
from ctm.data import Images, load_images
from ctm.data.conditions import fields_digest, names_of
from ctm.data.latents import Latents
from ctm.data.notes import tell
from ctm.data.stack import Size, sides_of
from ctm.evaluation.classes import UNIFORM, Renumbered, SharedClasses, Unlabelled, shared_classes
from ctm.evaluation.classifier import Classifier
from ctm.evaluation.conditions import FieldsFrom, check_fields, rule_of, sample_fields, with_labels
from ctm.evaluation.extractors import Extractor, checksum_of, data_extractor, make_extractor
from ctm.evaluation.measure import compare_images, measure
from ctm.evaluation.passes import Processes, forget, run_pass
from ctm.evaluation.plans import Plan
from ctm.evaluation.protocol import environment, protocol
from ctm.evaluation.reference import (
    Reference,
    classifier_of,
    images_checksum,
    is_statistics,
    reference_of,
    statistics_file,
)
from ctm.evaluation.rows import Row, nothing
from ctm.evaluation.sources import ImageSource, Source, data_labels
from ctm.evaluation.statistics import Layout, Statistics
from ctm.foreign.text import JSONObject
from ctm.models.protocol import Denoiser
from ctm.progress import Progress, silent
from ctm.sampling import class_labels
from ctm.sampling.generation import copy_on
from ctm.teachers.pipelines import picture_shape

__all__ = [
    "Judge",
    "condition_of",
    "evaluate_images",
    "evaluate_plans",
    "judge_of",
    "labels_of",
    "make_judge",
    "shared_with",
]

_SHOWN_COPIES = 10
_KEPT_PIXELS = 1024


@dataclass(frozen=True)
class Judge:
    """What samples are measured with: the reference, the networks, and the record of both."""

    extractor: Extractor
    classifier: Classifier | None
    reference: Reference
    protocol: JSONObject
    images: int
    rows: int
    labels: str
    processes: Processes
    fields: FieldsFrom = "data"

    @property
    def data(self) -> Images | None:
        """The reference's images, None for a file of statistics."""
        return None if self.reference.source is None else self.reference.source.images

    def key(self, record: Mapping[str, object]) -> str:
        """A name for one set of samples under this protocol."""
        text = json.dumps([self.protocol, record], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:32]


def make_judge(
    data: str,
    *,
    size: Size | None,
    channels: int | None,
    split: str | None = None,
    features: str = "efficientnet",
    side: int | None = None,
    images: int,
    rows: int = 2000,
    labels: str = "data",
    processes: Processes | None = None,
    progress: Progress = silent,
    reading: Mapping[str, Any] | None = None,
    fields: FieldsFrom = "data",
    classifier: bool = True,
    check: Callable[[Images], object] | None = None,
    with_texts: Callable[[Images], Images] | None = None,
) -> Judge:
    """The judge that compares `images` samples with `data` (as ctm.data.load_images takes it, or an .npz of statistics).

    size, channels: of the samples; the data are brought to them. rows: features kept on both sides for KID, CMMD and
    neighbours. labels: "data" draws the samples' classes as often as the data have them, "uniform" equally often. reading:
    image, label, condition and max_gb of ctm.data.load_images. fields: where the fields of the samples' conditions come from: the
    rows of the data, nowhere, or a file. classifier: whether to train one on the data's labels, for the metrics of
    classes. with_texts: adds the fields of captions to the images. check: called with the images before anything is computed; it
    raises for images that do not fit a model. Raises ValueError for what does not fit."""
    if images < 2 or rows < 2:
        raise ValueError(f"--num and --rows must be at least 2, got {images} and {rows}")
    if labels not in ("data", "uniform"):
        raise ValueError(f"--labels must be data or uniform, got {labels!r}")
    if features != "classifier":
        extractor = make_extractor(features, 0 if size is None else max(sides_of(size)), side)
        if is_statistics(data, extractor.features):
            processes, rows = processes or Processes(), min(rows, images)
            reference = statistics_file(Path(data), rows)
            if (reading or {}).get("condition"):
                raise ValueError(
                    f"{data} is a file of statistics, whose rows have no fields: give --condition FILE.npz"
                )
            rule = rule_of(fields, None)
            about = protocol(extractor, None, reference, images=images, rows=rows, labels="uniform", condition=rule)
            return Judge(extractor, None, reference, about, images, rows, "uniform", processes, fields)
    found = load_images(data, size, channels, split, **(reading or {}))
    found = found if with_texts is None else with_texts(found)
    if check is not None:
        check(found)
    return judge_of(
        found,
        features=features,
        side=side,
        images=images,
        rows=rows,
        labels=labels,
        fields=fields,
        classifier=classifier,
        processes=processes,
        progress=progress,
    )


def judge_of(
    data: Images,
    *,
    features: str = "efficientnet",
    side: int | None = None,
    images: int,
    rows: int = 2000,
    labels: str = "data",
    fields: FieldsFrom = "data",
    classifier: bool = True,
    processes: Processes | None = None,
    progress: Progress = silent,
) -> Judge:
    """The judge that compares samples with the given images. Arguments as in `make_judge`."""
    if isinstance(data, Latents):
        raise ValueError(
            f"{data.name} holds latents, and an evaluation compares pictures: give those they were made of"
        )
    processes, rows, checksum = processes or Processes(), min(rows, images), images_checksum(data)
    trained = classifier_of(data, checksum, processes, progress) if classifier else None
    extractor = data_extractor(features, data, trained, side)
    reference = reference_of(data, checksum, extractor, trained, rows=rows, processes=processes, progress=progress)
    reference.prepare(rows)
    weights = None if trained is None else checksum_of(trained)
    rule = rule_of(fields, data)
    about = protocol(extractor, weights, reference, images=images, rows=rows, labels=labels, condition=rule)
    return Judge(extractor, trained, reference, about, images, rows, labels, processes, fields)


def evaluate_plans(
    judge: Judge,
    plans: Sequence[Plan],
    out: Path,
    *,
    batch_size: int = 250,
    progress: Progress = silent,
    quiet: bool = False,
) -> list[Row]:
    """One row for each plan, the teacher's first. Rows that `out` already holds are read.

    Samples of every plan start from the same noise. If a teacher is among the plans, the models' images are compared with
    its images. quiet: no lines on classes and fields."""
    rows: list[Row] = []
    models = {id(plan.subject.model): plan for plan in plans}
    classes = {
        key: shared_with(judge, plan.subject.model, f"the {plan.record['role']}", quiet) for key, plan in models.items()
    }
    for plan in models.values():
        who = f"the {plan.record['role']}"
        lines = check_fields(judge.fields, judge.data, plan.subject.model, who, judge.labels)
        tell([] if quiet else lines, plan.subject.name)
    there: dict[int, Any] = {}  # the model of the newest plan, where it computes; the caller's stays as it is
    for plan in sorted(plans, key=lambda plan: plan.record["role"] != "teacher"):
        if id(plan.subject.model) not in there:
            there = {id(plan.subject.model): copy_on(plan.subject.model, judge.processes.device)}
        shared = classes[id(plan.subject.model)]
        condition, drawn = condition_of(judge, plan.subject.model, plan.record["seed"])
        source = plan.source(there[id(plan.subject.model)], judge.images, condition, judge.processes.device)
        teacher = next((row for row in rows if row.record["role"] == "teacher"), None)
        against = teacher if plan.record["role"] != "teacher" and _same_start(teacher, plan) else None
        record = plan.record | {"teacher": None if against is None else _about(against)} | _numbers(shared) | drawn
        rows.append(
            _row(
                judge,
                source,
                record,
                picture_shape(plan.subject.model),
                out,
                shared,
                batch_size,
                against,
                progress,
                plan.title,
            )
        )
    return rows


def evaluate_images(
    judge: Judge,
    images: Images,
    name: str,
    out: Path,
    *,
    made: Mapping[str, object] | None = None,
    batch_size: int = 250,
    progress: Progress = silent,
) -> Row:
    """The row of given samples. made: what is known of how they were made, by the names of a plan's record. Raises
    ValueError if there are fewer of them than the judge is to see."""
    if len(images) < judge.images:
        raise ValueError(f"{name} holds {len(images)} images, fewer than --num {judge.images}: lower --num")
    record: JSONObject = dict.fromkeys(
        (
            "ema",
            "sampler",
            "steps",
            "evaluations",
            "gamma",
            "form",
            "grid",
            "guidance",
            "rejection",
            "seed",
            "precision",
        )
    )
    record |= made or {}
    record |= {"teacher": None, "role": "samples", "name": name, "checksum": images_checksum(images)}
    shared = None if images.labels is None else shared_with(judge, images, "the samples", quiet=False)
    record |= _numbers(shared)
    source = ImageSource(images, judge.images, seed=1)  # another order than the reference's
    return _row(judge, source, record, images.shape, out, shared, batch_size, None, progress, name)


def shared_with(judge: Judge, other: object, who: str, quiet: bool) -> SharedClasses | None:
    """The classes that the data share with a model or with samples."""
    return shared_classes(
        judge.data, other, who=who, strict=judge.labels == "data" and who != "the samples", quiet=quiet, remedy=UNIFORM
    )


def _numbers(shared: SharedClasses | None) -> JSONObject:
    """Entries of a row's record for classes that were matched by name; empty if the numbers are the same."""
    return {} if shared is None or shared.same else {"classes": shared.to_model.tolist()}


def _about(teacher: Row) -> dict[str, object]:
    """The teacher whose samples a row is compared with."""
    return {name: teacher.record[name] for name in ("name", "checksum", "sampler", "evaluations")}


def _same_start(teacher: Row | None, plan: Plan) -> bool:
    """Whether the plan's samples start from the teacher's noise: the same seed and the same highest level."""
    if teacher is None:
        return False
    ours, theirs = plan.record, teacher.record
    highest = ours["grid"].get("sigma_max")  # a pipeline of diffusers has none
    return ours["seed"] == theirs["seed"] and highest == theirs["grid"]["sigma_max"]


def labels_of(judge: Judge, model: Denoiser, seed: int) -> Tensor | None:
    """The classes of a model's samples, in its numbers: as often as in the data if they share classes, or equally often.
    None for an unconditional model."""
    data, chosen = judge.data, None
    shared = shared_with(judge, model, "the model", quiet=True)
    if judge.labels == "data" and data is not None and shared is not None:
        drawn = data_labels(data, judge.images, seed)
        chosen = None if drawn is None else shared.of_model(drawn)
    return class_labels(model, judge.images, chosen, seed)


def condition_of(judge: Judge, model: Denoiser, seed: int) -> tuple[Condition, JSONObject]:
    """The condition of a model's samples, classes as in `labels_of`, and what a row's record says of its fields; nothing without
    fields. Where the fields come from the data's rows and the rows' classes are not known to the model, it gets no class."""
    labels = labels_of(judge, model, seed)
    fields = sample_fields(judge.fields, judge.data, model, judge.images, seed)
    if not fields:
        return labels, {}
    paired = judge.fields == "data"
    if paired and labels is not None and shared_with(judge, model, "the model", quiet=True) is None:
        labels = torch.full_like(labels, -1)
    return with_labels(fields, labels), {"fields": {"names": names_of(fields), "sha256": fields_digest(fields)}}


def _row(
    judge: Judge,
    source: Source,
    record: JSONObject,
    shape: tuple[int, ...],
    out: Path,
    shared: SharedClasses | None,
    batch_size: int,
    teacher: Row | None,
    progress: Progress,
    words: str,
) -> Row:
    """The row, read from its file, or made and written. Every process takes part in the pass; the first computes the
    numbers."""
    key = judge.key(record)
    path, processes = out / "rows" / f"{key}.safetensors", judge.processes
    found = Row.load(path)
    processes.wait()
    if found is not None:
        return found
    channels, height, width = shape
    layout = Layout(
        judge.extractor.features,
        judge.extractor.spatial,
        0 if judge.reference.classes is None else len(judge.reference.classes.count),
        judge.rows,
        min(_KEPT_PIXELS, judge.images),
        (height, width, channels),
    )
    passing = out / "rows" / f"{key}.statistics.safetensors"
    seen = run_pass(
        Unlabelled(source) if shared is None else Renumbered(source, shared.to_data),
        judge.extractor,
        judge.classifier,
        layout,
        path=passing,
        key=key,
        batch_size=batch_size,
        processes=processes,
        progress=progress,
        words=words,
        keep=False,
    )
    if processes.index == 0:
        _numbered(judge, seen, record, shared is not None, teacher).save(path)
        forget(passing)
    processes.wait()
    row = Row.load(path)
    if row is None:
        raise RuntimeError(f"{path} was written and cannot be read back")
    return row


def _numbered(judge: Judge, seen: Statistics, record: JSONObject, labelled: bool, teacher: Row | None) -> Row:
    """The row of the samples, with the numbers from their statistics."""
    started = time.perf_counter()
    numbers, copies = measure(seen, judge.reference, labelled=labelled)
    if teacher is not None:
        numbers |= compare_images(seen.pixels, teacher.pixels)
    seconds = dict(zip(("generator", "features", "sums"), seen.seconds.tolist(), strict=True))
    seconds["metrics"] = time.perf_counter() - started
    shown, originals = nothing(), nothing()
    if copies is not None:
        shown = copies.distances[: len(seen.pixels)].argsort()[:_SHOWN_COPIES]
        originals = copies.neighbours[shown]
    where = environment(judge.processes.device, judge.processes.count)
    return Row(record, numbers, seconds, seen.count, seen.pixels, shown, originals, where)
