"""The demo from end to end."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from ctm import __version__
from ctm.console import text_console
from ctm.data import Images, load_images
from ctm.demo import figures
from ctm.demo.measure import STEPS, TEACHER_LEVELS, Judge, Row, as_json, jump_path, labelled, measure
from ctm.demo.report import report
from ctm.evaluation.classifier import train_classifier
from ctm.files import write_whole
from ctm.models import load_model
from ctm.noise import karras_grid, to_zero
from ctm.progress import tracked
from ctm.sampling import generate, heun
from ctm.terminal.recipe_parser import parse_recipe
from ctm.training import train
from ctm.training.run_directory import RunDirectory

__all__ = ["run_demo"]

_SHOWN = 12


def run_demo(out: Path) -> None:
    """Train teacher and student in out/teacher and out/student (or go on with them), measure, write report.html and
    result.json, and print the table and where the report is."""
    console = text_console()
    images = load_images("digits")
    console.print(f"data: {images.source}; teacher first, then the CTM that learns to jump along its trajectories")
    runs = {
        "teacher": _train("digits-teacher.yaml", out / "teacher", images, []),
        "student": _train("digits-ctm.yaml", out / "student", images, ["--teacher", str(out / "teacher")]),
    }
    seconds = {name: run.read_metrics()[-1]["seconds"] for name, run in runs.items()}
    started = time.monotonic()
    console.print("training the classifier whose features measure the Fréchet distance")
    judge = Judge(
        images, train_classifier(*labelled(images), progress=lambda steps, words: tracked(list(steps), words))
    )
    teacher, student = load_model(out / "teacher"), load_model(out / "student")
    rows = measure(teacher, student, judge, lambda plans: tracked(plans, "measuring", unit="rows"))
    floor = judge.floor()
    pictures = _pictures(teacher, student, rows, floor, runs)
    seconds["measuring"] = time.monotonic() - started
    lead, notes = _words(images, judge, rows, floor, seconds, runs)
    result = {
        "rows": as_json(rows),
        "floor": floor,
        "seconds": seconds,
        "version": __version__,
        "torch": torch.__version__,
    }
    result |= {"threads": torch.get_num_threads(), "classifier_accuracy": judge.accuracy()}
    write_whole(out / "result.json", (json.dumps(result, indent=2) + "\n").encode())
    write_whole(out / "report.html", report(lead, rows, notes, pictures).encode())
    _print_table(console, rows)
    console.print(notes)
    console.print(f"trained and measured in {sum(seconds.values()):.0f} s; report: {out / 'report.html'}")


def _train(recipe_name: str, out: Path, images: Images, extra: list[str]) -> RunDirectory:
    recipe, text = parse_recipe(["--config", str(Path(__file__).parents[1] / "recipes" / recipe_name), *extra])
    return train(recipe, out, text, images=images, title=out.name)


def _pictures(
    teacher: Any, student: Any, rows: list[Row], floor: float, runs: dict[str, RunDirectory]
) -> list[tuple[str, bytes]]:
    labels = torch.arange(_SHOWN) % student.num_classes
    grid = to_zero(karras_grid(TEACHER_LEVELS - 1, teacher.sigma_min, teacher.sigma_max))
    shown = {"teacher (35)": generate(teacher, _SHOWN, condition=labels, grid=grid, sampler=heun)}
    shown |= {f"CTM ({steps})": generate(student, _SHOWN, condition=labels, steps=steps) for steps in STEPS}
    path = jump_path(student, label=3, steps=8)
    metrics = {name: run.read_metrics() for name, run in runs.items()}
    return [
        (
            "The same noise under teacher and CTM; in brackets the evaluations of the network.",
            figures.png(figures.same_noise(shown)),
        ),
        (
            "Quality against steps. γ = 0 jumps deterministically; γ = 1 returns to full noise each time, as a consistency "
            "model does.",
            figures.png(figures.quality_against_steps(rows, floor)),
        ),
        (
            "From noise to a three in eight jumps, states divided by √(1 + σ²); below, where one jump to the end leads.",
            figures.png(figures.way_from_noise(*path)),
        ),
        ("Losses of both runs.", figures.png(figures.loss_curves(metrics))),
    ]


def _words(
    images: Images,
    judge: Judge,
    rows: list[Row],
    floor: float,
    seconds: dict[str, float],
    runs: dict[str, RunDirectory],
) -> tuple[str, str]:
    """The report's first paragraph, and the notes under its table."""
    one = next(row for row in rows[1:] if row.steps == 1)
    lead = (
        f"A diffusion teacher and a Consistency Trajectory Model were trained on {len(images)} real handwritten digits "
        f"({images.source}). In one evaluation of its network the CTM reaches {one.frechet / rows[0].frechet:.2f} times the "
        f"teacher's Fréchet distance at {rows[0].evaluations} evaluations."
    )
    steps = {name: int(run.read_metrics()[-1]["step"]) for name, run in runs.items()}
    notes = (
        f"The teacher trained for {seconds['teacher']:.0f} s ({steps['teacher']} steps), the CTM for {seconds['student']:.0f} s "
        f"({steps['student']} steps). Fréchet distances are over the 64 features of a small classifier trained on the same "
        f"digits (accuracy on them {100 * judge.accuracy():.1f} %), between all {len(images)} real images and as many samples "
        f"with the same labels, mean and largest deviation of three seeds; pooled: the samples of all three together, less "
        f"biased. They compare only with each other. The floor: two "
        f"halves of the real data ({len(images) // 2} images each, which raises it) are {floor:.2f} apart. Label agreement is "
        "that classifier's. MSE is to the teacher's sample from the same noise, in units of [-1, 1]."
    )
    return lead, notes


def _print_table(console: Console, rows: list[Row]) -> None:
    table = Table(
        box=SIMPLE, padding=(0, 1, 0, 0), title="teacher: Heun, 35 evaluations; CTM: one a jump; ×: the teacher's"
    )
    for name in ("", "γ", "jumps", "Fréchet", "×", "pooled ×", "labels", "MSE", "ms"):
        table.add_column(name, justify="left" if name == "" else "right", no_wrap=True)
    for row in rows:
        table.add_row(
            row.model,
            "" if row is rows[0] else f"{row.gamma:g}",
            f"({row.evaluations})" if row is rows[0] else str(row.steps),
            f"{row.frechet:.2f} ± {row.frechet_spread:.2f}",
            f"{row.frechet / rows[0].frechet:.2f}",
            f"{row.frechet_pooled / rows[0].frechet_pooled:.2f}",
            f"{100 * row.label_agreement:.1f} %",
            "" if row is rows[0] else f"{row.mse_to_teacher:.4f}",
            f"{row.ms_per_image:.3f}",
        )
    console.print(table)
