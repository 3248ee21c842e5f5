import math

import pytest
import torch
from accelerate import Accelerator

from ctm.cli import main
from ctm.commands.train import parse_recipe
from ctm.objectives import DenoisingScoreMatching, Matching, TargetJump
from ctm.teachers import GaussianMixture
from ctm.training import assembly, dry_run
from ctm.training.dry_run import expected_teacher_evaluations

from .runs import RECIPES, SMALL, student_arguments, teacher_arguments, trained

MODEL = GaussianMixture(torch.zeros(1, 2), 0.5, torch.ones(1))


@pytest.mark.parametrize(
    ("matching", "expected"),
    [
        (Matching(grid_points=10), 2 * sum(k * k for k in range(1, 10)) / sum(range(1, 10))),
        (Matching(grid_points=18, max_solver_steps=4, solver_steps_power=0.0), 2 * 2.5),
        (Matching(kind="local"), 2),
        (Matching(solver=TargetJump()), 0),
    ],
)
def test_expected_evaluations_are_those_of_the_closed_form(matching, expected):
    """E[2k] with P(k) ∝ k^power, to four standard errors of 4,000 draws with k ≤ 9."""
    recipe, _ = parse_recipe(teacher_arguments("--steps", "20"))
    recipe.objectives = [matching, DenoisingScoreMatching()]
    found = expected_teacher_evaluations(recipe, MODEL, (2,))
    assert found == pytest.approx(expected, abs=4 * 2 * 2.6 / math.sqrt(4000))


def test_the_numbers_are_those_of_the_run(tmp_path):
    teacher = trained(tmp_path / "teacher", teacher_arguments("--steps", "1"))
    recipe, _ = parse_recipe(student_arguments(teacher, "--steps", "100"))
    found = dry_run(recipe)
    run = assembly.prepare(recipe, Accelerator(cpu=True), assembly.load_data(recipe))
    counts = {
        name: sum(p.numel() for p in model.parameters())
        for name, model in (("student", run.student), ("teacher", run.teacher))
    }
    assert found.parameters == counts
    assert found.parameter_bytes == 4 * (3 * counts["student"] + counts["teacher"])
    assert found.gradient_bytes == 4 * counts["student"]
    assert 8 * counts["student"] <= found.optimizer_bytes <= 8.1 * counts["student"]  # two moments, and step counters
    assert found.peak_bytes > found.parameter_bytes + found.gradient_bytes + found.optimizer_bytes
    assert found.evaluations["teacher"] in range(2, 19, 2)
    assert (found.evaluations["student"], found.evaluations["target"]) == (3, 2)
    assert 0 < found.expected_seconds < 10 * found.seconds
    assert found.stand_ins == []


def run(capsys, *arguments: str) -> str:
    assert main(["train", *arguments, "--dry-run"]) == 0
    return capsys.readouterr().out


def test_nothing_is_written(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    printed = run(capsys, "--config", str(RECIPES / "digits-ctm.yaml"), *SMALL, "--teacher", "null")
    assert "a copy of the untrained student stands in for it" in printed
    assert "of the teacher about 12." in printed
    assert "whole run: 1,500 steps, about" in printed
    assert not (tmp_path / "runs").exists()
    printed = run(capsys, *teacher_arguments("--out", str(tmp_path / "out")))
    assert "of the teacher" not in printed
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["images-ctm.yaml", "images-teacher.yaml"])
def test_a_large_recipe_at_reduced_width(capsys, name):
    data = ["--data.name", "digits", "--data.size", "16", "--data.channels", "3", "--data.batch_size", "1"]
    arguments = ["--config", str(RECIPES / name), *data, "--network.init_args.channels", "32", "--teacher", "null"]
    printed = run(capsys, *arguments)
    made, _ = parse_recipe(arguments)
    count = sum(p.numel() for p in made.model.build(made.network, (3, 16, 16), 10).parameters())
    assert 1_000_000 < count < 3_000_000
    assert f"parameters: student {count:,}" in printed
    assert "peak" in printed


def test_a_teacher_that_is_not_there_is_a_sentence(capsys):
    assert main(["train", *student_arguments("runs/nowhere"), "--dry-run"]) == 2
    assert "there is no directory runs/nowhere" in capsys.readouterr().err
