"""The demo from end to end: two runs of the recipes on digits, and an evaluation of what came of them."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ctm.console import text_console
from ctm.data import Images, load_images
from ctm.demo.figures import loss_curves, way_from_noise
from ctm.evaluation.figures import png
from ctm.evaluation.plans import Plan, make_plans, subject_of
from ctm.evaluation.protocol import environment
from ctm.evaluation.report import Frame, notes_on, write_result
from ctm.evaluation.rows import Row
from ctm.evaluation.run import evaluate_plans, judge_of
from ctm.evaluation.table import rows_table
from ctm.models import TrajectoryModel, load_model
from ctm.noise import karras_grid
from ctm.progress import tracked_parts
from ctm.sampling import starting_noise
from ctm.terminal.recipe_parser import parse_recipe
from ctm.training import train
from ctm.training.run_directory import RunDirectory

__all__ = ["jump_path", "run_demo"]

STEPS = (1, 2, 4, 8)
GAMMAS = (0.0, 0.5, 1.0)
TEACHER_LEVELS = 18
SAMPLES = 5000
_PATH_CLASS, _PATH_STEPS = 3, 8


def run_demo(out: Path) -> None:
    """Train teacher and student in out/teacher and out/student (or go on with them), evaluate both as `ctm evaluate` does,
    write its files with the way of one sample and the losses added, and print the table and where the report is."""
    console = text_console(wide=True)
    images = load_images("digits")
    console.print(f"data: {images.source}; teacher first, then the CTM that learns to jump along its trajectories")
    runs = {
        "teacher": _train("digits-teacher.yaml", out / "teacher", images, []),
        "student": _train("digits-ctm.yaml", out / "student", images, ["--teacher", str(out / "teacher")]),
    }
    seconds = {name: run.read_metrics()[-1]["seconds"] for name, run in runs.items()}
    started = time.monotonic()
    console.print("evaluating, by the features of a classifier of these digits")
    judge = judge_of(images, features="classifier", images=SAMPLES, progress=tracked_parts)
    rows = evaluate_plans(judge, _plans(out), out, progress=tracked_parts)
    seconds["measuring"] = time.monotonic() - started
    frame = Frame(
        "Digits in one step",
        _lead(images, rows),
        _training_notes(runs, seconds),
        _pictures(TrajectoryModel.from_pretrained(runs["student"].path / "model"), runs),
        {"seconds": seconds},
    )
    about = environment(judge.processes.device, judge.processes.count)
    result = write_result(out, judge.protocol, about, judge.reference, rows, frame)
    console.print(rows_table(rows))
    console.print(f"{frame.lead} {frame.notes} {notes_on(result)}")
    console.print(f"trained and measured in {sum(seconds.values()):.0f} s; report: {out / 'report.html'}")


def _train(recipe_name: str, out: Path, images: Images, extra: list[str]) -> RunDirectory:
    recipe, text = parse_recipe(["--config", str(Path(__file__).parents[1] / "recipes" / recipe_name), *extra])
    return train(recipe, out, text, images=images, title=out.name)


def _plans(out: Path) -> list[Plan]:
    """The teacher by Heun's method, 35 evaluations, and the student at every number of jumps and γ."""
    teacher, student = (
        subject_of(role, str(out / name), load_model(out / name))
        for role, name in (("teacher", "teacher"), ("model", "student"))
    )
    return [
        *make_plans(teacher, steps=[TEACHER_LEVELS], sampler="heun"),
        *make_plans(student, steps=STEPS, gammas=GAMMAS),
    ]


def _pictures(student: TrajectoryModel, runs: dict[str, RunDirectory]) -> list[tuple[str, bytes]]:
    path = jump_path(student, _PATH_CLASS, _PATH_STEPS)
    return [
        (
            "From noise to a three in eight jumps, states divided by √(1 + σ²); below, where one jump to the end leads.",
            png(way_from_noise(*path)),
        ),
        ("Losses of both runs.", png(loss_curves({name: run.read_metrics() for name, run in runs.items()}))),
    ]


def _lead(images: Images, rows: Sequence[Row]) -> str:
    """The report's first paragraph: the student's Fréchet distances at γ = 0 as multiples of the teacher's."""
    teacher, *others = rows
    scale = teacher.numbers["frechet"].value
    ratios = [
        f"{row.numbers['frechet'].value / scale:.2f} in {row.record['evaluations']}"
        for row in others
        if row.record["gamma"] == 0
    ]
    return (
        f"A diffusion teacher and a Consistency Trajectory Model were trained on {len(images)} real handwritten digits "
        f"({images.source}). Fréchet distance of the CTM in units of the teacher's at {teacher.record['evaluations']} "
        f"evaluations of its network, γ = 0: {', '.join(ratios)}. γ = 0 jumps deterministically; γ = 1 returns to full noise "
        "each time, as a consistency model does."
    )


def _training_notes(runs: dict[str, RunDirectory], seconds: dict[str, float]) -> str:
    steps = {name: int(run.read_metrics()[-1]["step"]) for name, run in runs.items()}
    return (
        f"The teacher trained for {seconds['teacher']:.0f} s ({steps['teacher']} steps), the CTM for "
        f"{seconds['student']:.0f} s ({steps['student']} steps)."
    )


@torch.no_grad()
def jump_path(student: TrajectoryModel, label: int, steps: int, seed: int = 0) -> tuple[list[float], Tensor, Tensor]:
    """One sample's way from noise in `steps` jumps: the levels, the states divided by √(1 + t²), and from each state what
    one jump to the end gives. (steps + 1 levels; states and ends (steps + 1, C, H, W).)"""
    grid = karras_grid(steps, student.sigma_min, student.sigma_max)
    labels = torch.tensor([label])
    x = grid[0] * starting_noise(student.shape, [0], seed)
    states, ends = [x], []
    for t, s in itertools.pairwise(grid):
        ends.append(student.jump(x, t[None], grid[-1:], labels))
        x = student.jump(x, t[None], s[None], labels)
        states.append(x)
    ends.append(x)
    scaled = [state / (1 + t**2).sqrt() for state, t in zip(states, grid, strict=True)]
    return grid.tolist(), torch.cat(scaled), torch.cat(ends)
