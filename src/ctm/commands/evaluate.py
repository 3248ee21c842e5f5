"""Measure samples of a model at several numbers of steps against data and a teacher; write a report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from jsonargparse import Namespace

from ctm.commands.evaluate_values import evaluate_on_values
from ctm.commands.output import sampling_record
from ctm.commands.prompts import embedded_captions
from ctm.console import text_console
from ctm.data import Images, load_images
from ctm.data.captions import load_captions
from ctm.data.dataset import holds_values
from ctm.data.latents import text_fields
from ctm.evaluation.classes import UNIFORM, shared_classes
from ctm.evaluation.conditions import FieldsFrom, check_fields, fields_from
from ctm.evaluation.extractors import NAMES
from ctm.evaluation.likelihood import likelihood_number
from ctm.evaluation.passes import Processes
from ctm.evaluation.peers import object_subject, peer_plans
from ctm.evaluation.pipelines import PipelinePlan
from ctm.evaluation.plans import Plan, Subject, make_plans, subject_of
from ctm.evaluation.protocol import environment
from ctm.evaluation.report import notes_on, write_result
from ctm.evaluation.rows import Row
from ctm.evaluation.run import Judge, evaluate_images, evaluate_plans, make_judge
from ctm.evaluation.table import rows_table
from ctm.foreign.objects import is_object_path
from ctm.models import AnyModel
from ctm.progress import Progress, silent, tracked_parts
from ctm.teachers.load import load_sampled, load_teacher, unused_deviation
from ctm.teachers.pipelines import picture_shape, reads_prompts
from ctm.terminal.options import (
    add_data_options,
    add_device_option,
    add_peer_options,
    check_steps,
    data_options,
    numbers,
    usable_device,
)
from ctm.terminal.parser import Parser, command_parser
from ctm.terminal.paths import check_place
from ctm.training.processes import check_launch

__all__ = ["parser", "run"]

_FEATURES, _ROWS = "efficientnet", 2000


def parser() -> Parser:
    result = command_parser(
        "evaluate",
        "Draw samples at several numbers of steps and γ, and compare them with data, and with a teacher from the same noise. "
        "Writes result.json (every number with its error bar, and the whole protocol), quality.png, samples.png and report.html. "
        "The same command goes on after an interruption. Processes share the work: under torchrun, or accelerate on GPUs.",
        "ctm evaluate models/digits-ctm --teacher models/digits-teacher --data digits --steps 1,2,4 --num 2000",
    )
    words = "model directory, run directory or hub id; or MODULE:OBJECT, an object with denoise or jump (needs --allow)"
    result.add_argument("model", type=str, nargs="?", default=None, help=words)
    result.add_argument("--data", type=str, required=True, help="as for train; or an .npz of statistics (EDM, ADM)")
    add_data_options(result)
    result.add_argument(
        "--caption",
        type=str,
        default=None,
        help="of a model that takes a text: array or column of --data with captions (default: text), or 'a {}' with the class",
    )
    result.add_argument("--samples", type=str, default=None, help="folder or .npz of samples, also without a model")
    result.add_argument(
        "--teacher", type=str, default=None, help="also evaluate this teacher; MSE and PSNR compare with its samples"
    )
    add_peer_options(result)
    result.add_argument("--num", type=int, default=10_000, help="number of samples of each row")
    result.add_argument("--steps", type=str, default=None, help="jumps: 1,2,4; or noise levels of other samplers: 18")
    result.add_argument("--gamma", type=str, default=None, help="γ of the jumps, one or several: 0,0.5,1 (default: 0)")
    result.add_argument(
        "--grid", type=str, default=None, help="karras: the plain grid, not the levels and γ that ctm tune chose"
    )
    result.add_argument(
        "--sampler", type=str, default=None, help="gamma, euler, heun or dpmpp_2m (default as in sample)"
    )
    result.add_argument("--cfg", type=float, default=None, help="classifier-free guidance of the model and the teacher")
    result.add_argument("--teacher_steps", type=int, default=18, help="noise levels of the teacher's Heun sampler")
    _add_network_options(result)
    result.add_argument(
        "--labels", type=str, default="data", help="classes of the samples: as often as in data, or uniform"
    )
    result.add_argument(
        "--condition",
        type=str,
        default="data",
        help="fields of the samples' conditions: data, its rows' own by number; none; or an .npz, whose rows are repeated",
    )
    result.add_argument("--likelihood", type=int, default=0, help="number of data images for bits/dim of the models")
    result.add_argument("--split", type=str, default=None, help="train or test, where data have both (default: train)")
    result.add_argument("--seed", type=int, default=0, help="sample i depends on (seed, i) only")
    result.add_argument("--batch_size", type=int, default=250, help="samples computed together")
    add_device_option(result)
    result.add_argument("--out", type=str, default="runs/evaluation", help="where the files go")
    return result


def _add_network_options(result: Parser) -> None:
    """What looks at the pictures: the feature network and the classifier."""
    result.add_argument(
        "--features", type=str, default=None, help=f"feature network: {', '.join(NAMES)} (default: {_FEATURES})"
    )
    result.add_argument(
        "--side",
        type=int,
        default=None,
        help="size in pixels of its input (default: 64 for images up to 64, else its own)",
    )
    result.add_argument(
        "--rows", type=int, default=None, help=f"features kept for KID, CMMD, precision … (default: {_ROWS})"
    )
    result.add_argument(
        "--classifier",
        type=str,
        default=None,
        help="data: train one on the labels of --data, once (the default); none: without label accuracy and the like",
    )


def run(settings: Namespace) -> None:
    """Evaluate every model and sample set of the settings, print the table and write the files."""
    if settings.model is None and settings.samples is None and not settings.peer:
        raise ValueError("nothing to evaluate: give a model, --peer, or --samples with a folder or .npz of images")
    if settings.likelihood < 0 or settings.batch_size < 1:
        raise ValueError("--likelihood must be at least 0 and --batch_size at least 1")
    if settings.seed < 0:
        raise ValueError(f"--seed must be at least 0, got {settings.seed}")
    out = Path(settings.out)
    check_place(out / "result.json")
    processes = _processes(settings.device)
    plans = _plans(settings)
    fields, reading = _fields(settings, plans)
    made = {} if settings.samples is None else sampling_record(Path(settings.samples))
    if holds_values(settings.data, reading.get("image")):
        evaluate_on_values(settings, plans, fields, reading, processes)
        return
    samples = None if settings.samples is None else load_images(settings.samples, None, None, settings.split)
    shown = picture_shape(plans[0].subject.model) if samples is None and plans else ()
    if len(shown) == 3 and shown[0] not in (1, 3):
        evaluate_on_values(settings, plans, fields, reading, processes)
        return
    size, channels = _shape(plans, samples)
    progress = tracked_parts if processes.index == 0 else silent
    judge = make_judge(
        settings.data,
        size=size,
        channels=channels,
        split=settings.split,
        features=_FEATURES if settings.features is None else settings.features,
        side=settings.side,
        images=settings.num,
        rows=_ROWS if settings.rows is None else settings.rows,
        labels=settings.labels,
        processes=processes,
        progress=progress,
        reading=reading,
        fields=fields,
        classifier=_with_classifier(settings),
        check=lambda images: _check(images, plans, settings, fields),
        with_texts=_captioned(settings, plans, fields),
    )
    rows = evaluate_plans(judge, plans, out, batch_size=settings.batch_size, progress=progress)
    if samples is not None:
        options: dict[str, Any] = {"batch_size": settings.batch_size, "progress": progress}
        options["made"] = made
        rows.append(evaluate_images(judge, samples, settings.samples, out, **options))
    if processes.index == 0:
        _finish(judge, _with_likelihood(judge, plans, rows, settings, progress), out)


def _with_classifier(settings: Namespace) -> bool:
    """Whether a classifier of the data's labels is wanted. Raises ValueError for another word, and where its features are."""
    if settings.classifier not in (None, "data", "none"):
        raise ValueError(f"--classifier must be data or none, got {settings.classifier!r}")
    if settings.classifier == "none" and settings.features == "classifier":
        raise ValueError(
            "--features classifier are those of the classifier that --classifier none leaves out: give one"
        )
    return settings.classifier != "none"


def _plans(settings: Namespace) -> list[Plan]:
    """The plans of all rows to sample. Everything is checked before anything is computed."""
    alone = settings.model is None
    if alone and (settings.teacher is not None or settings.cfg is not None):
        raise ValueError("--teacher and --cfg belong to a model, and none is given")
    if alone and settings.steps is not None and not settings.peer:
        raise ValueError("--steps belongs to a model or a --peer, and none is given")
    steps = None if settings.steps is None else numbers(settings.steps, int, "--steps")
    gammas = None if settings.gamma is None else numbers(settings.gamma, float, "--gamma")
    check_steps(steps or ())
    check_steps([settings.teacher_steps] if settings.teacher is not None else (), "--teacher_steps")
    options: dict[str, Any] = {"seed": settings.seed, "guidance": settings.cfg}
    plans: list[Plan] = []
    if settings.model is not None:
        subject = _subject("model", settings.model, load_sampled)
        plans += make_plans(
            subject, steps=steps, gammas=gammas, sampler=settings.sampler, grid=settings.grid, **options
        )
    if settings.teacher is not None:
        teacher = _subject("teacher", settings.teacher, partial(load_teacher, sigma_data=unused_deviation))
        if teacher.model.shape != subject.model.shape:
            raise ValueError(f"the teacher's images are {teacher.model.shape} and the model's {subject.model.shape}")
        plans += make_plans(teacher, steps=[settings.teacher_steps], sampler="heun", **options)
    return plans + _peers(settings, steps, gammas, plans)


def _subject(role: str, name: str, load: Callable[[str], AnyModel]) -> Subject:
    """A model by its directory or hub id, or the object of an import path."""
    if is_object_path(name) and not Path(name).exists():
        return object_subject(role, name, "the command" if role == "model" else f"--{role}")
    return subject_of(role, name, load(name))


def _peers(
    settings: Namespace, steps: list[int] | None, gammas: list[float] | None, plans: Sequence[Plan]
) -> list[Plan]:
    """The plans of --peer. Raises ValueError for pictures of another shape than the model's, and for --prompts without a peer."""
    if settings.prompts is not None and not settings.peer:
        raise ValueError("--prompts belongs to a --peer that takes text, and none is given")
    found = peer_plans(
        settings.peer or (),
        steps=steps,
        gammas=gammas,
        sampler=settings.sampler,
        seed=settings.seed,
        prompts=settings.prompts,
    )
    first = [*plans, *found][:1]
    for plan in found:
        if plan.subject.model.shape != first[0].subject.model.shape:
            raise ValueError(
                f"the images of {plan.subject.name} are {plan.subject.model.shape} and those of {first[0].subject.name} "
                f"{first[0].subject.model.shape}: evaluate them apart"
            )
    return found


def _fields(settings: Namespace, plans: Sequence[Plan]) -> tuple[FieldsFrom, dict[str, Any]]:
    """Where the fields of the samples' conditions come from, and how --data is read. Raises ValueError where they do not fit the
    models, or the likelihood of the data."""
    models = [plan.subject.model for plan in plans]
    takes = {name: shape for model in reversed(models) for name, shape in model.conditioner.given_fields.items()}
    fields = fields_from(settings.condition, takes)
    reading = data_options(settings, [model for model in models if not reads_prompts(model)])
    if settings.likelihood and settings.condition not in ("data", "none"):
        raise ValueError(
            f"--likelihood is of the data's images under their own fields, and --condition {settings.condition} gives others: "
            "leave one out"
        )
    return fields, reading


def _captioned(settings: Namespace, plans: Sequence[Plan], fields: FieldsFrom) -> Callable[[Images], Images] | None:
    """What adds the captions of --data, embedded by the model's own text encoder; None where no model reads prompts, or the
    samples get their text from elsewhere. Raises ValueError for --caption then."""
    model = next((plan.subject.model for plan in plans if reads_prompts(plan.subject.model)), None)
    if model is None or fields != "data":
        if settings.caption is not None:
            why = "no model here reads prompts" if model is None else "--condition gives the texts"
            raise ValueError(f"--caption {settings.caption}: {why}, leave it out")
        return None

    def add(images: Images) -> Images:
        captions = load_captions(settings.data, images, settings.caption, settings.split)
        return replace(images, fields={**images.fields, **text_fields(embedded_captions(model, captions))})

    return add


def _check(images: Images, plans: Sequence[Plan], settings: Namespace, fields: FieldsFrom) -> None:
    """Raises ValueError if labels are drawn from the data and a model does not know one of these classes, and for fields that do
    not fit a model."""
    for plan in plans:
        who = f"the {plan.record['role']}"
        shared_classes(
            images, plan.subject.model, who=who, strict=settings.labels == "data", quiet=True, remedy=UNIFORM
        )
        check_fields(fields, images, plan.subject.model, who, settings.labels)


def _shape(plans: Sequence[Plan], samples: Images | None) -> tuple[tuple[int, int], int]:
    """((height, width), channels) to which the data are brought: the model's, or the samples'."""
    shape = picture_shape(plans[0].subject.model) if plans else samples.shape if samples is not None else None
    if shape is None or len(shape) != 3 or shape[0] not in (1, 3):
        raise ValueError(
            f"feature networks look at pictures of 1 or 3 channels, and these are {shape}. Of other shapes the numbers "
            "themselves are measured, where --data is a file of arrays of that shape"
        )
    if samples is not None and samples.shape != shape:
        raise ValueError(f"the samples are {samples.shape} and the model's images {shape}: evaluate them apart")
    return (shape[1], shape[2]), shape[0]


def _processes(device: str | None) -> Processes:
    """This process and its number among the launcher's processes. Raises ValueError where a launcher was to start several
    processes and has not."""
    state = PartialState(cpu=not torch.accelerator.is_available())
    check_launch(state.num_processes, "evaluate")
    place = state.device if device is None else usable_device(device)
    return Processes(state.process_index, state.num_processes, place, state.wait_for_everyone)


def _with_likelihood(
    judge: Judge, plans: Sequence[Plan], rows: list[Row], settings: Namespace, progress: Progress
) -> list[Row]:
    """The rows with bits per dimension added. A model is measured once, and all its rows show the number."""
    if settings.likelihood == 0:
        return rows
    dense = [plan for plan in plans if not isinstance(plan, PipelinePlan)]  # a pipeline has no density
    subjects: dict[str, Subject] = {plan.record["checksum"]: plan.subject for plan in dense}
    found = {
        checksum: likelihood_number(judge, subject.model, settings.likelihood, settings.seed, progress=progress)
        for checksum, subject in subjects.items()
    }
    return [
        replace(
            row,
            record=row.record | {"likelihood_images": settings.likelihood},
            numbers=row.numbers | {"bits_per_dim": found[row.record["checksum"]]},
        )
        if row.record["checksum"] in found
        else row
        for row in rows
    ]


def _finish(judge: Judge, rows: list[Row], out: Path) -> None:
    """Write the files and print the table."""
    about = environment(judge.processes.device, judge.processes.count)
    result = write_result(out, judge.protocol, about, judge.reference, rows)
    console = text_console(wide=True)
    console.print(rows_table(rows))
    console.print(notes_on(result))
    console.print(f"result: {out / 'result.json'}; report: {out / 'report.html'}")
