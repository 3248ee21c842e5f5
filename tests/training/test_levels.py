"""The noise levels of a run's model: the recipe's, else those of the models it comes from, else measured."""

from types import SimpleNamespace

import numpy as np
import pytest

from ctm import load_model
from ctm.cli import main
from ctm.data import Images
from ctm.training.levels import settle_levels
from ctm.training.recipe import ModelSettings

from .runs import student_arguments, teacher_arguments, trained

IMAGES = Images(np.random.default_rng(0).integers(0, 256, (50, 4, 4, 1), dtype=np.uint8))
TEACHER = SimpleNamespace(sigma_min=0.01, sigma_max=40.0, sigma_data=0.7)
STUDENT = SimpleNamespace(sigma_min=0.02, sigma_max=30.0, sigma_data=0.6)


def settled(*, teacher=None, student=None, copies=True, **given):
    levels, lines = settle_levels(ModelSettings(**given), IMAGES, teacher=teacher, student=student, copies=copies)
    return (levels.sigma_min, levels.sigma_max, levels.sigma_data), lines


def test_without_other_models_the_deviation_is_measured_and_said():
    levels, (line,) = settled()
    measured = (IMAGES.pixels / 127.5 - 1).std()
    assert levels == (0.002, 80.0, pytest.approx(measured, abs=5e-5))
    assert line == f"sigma_data {levels[2]:g}: measured, the standard deviation of all 50 images in [-1, 1]"


def test_what_the_recipe_gives_is_taken():
    assert settled(sigma_data=0.5, sigma_min=0.1, sigma_max=10.0) == ((0.1, 10.0, 0.5), [])


def test_case_08_what_is_unset_is_the_teachers_and_said():
    levels, (line,) = settled(teacher=TEACHER)
    assert levels == (0.01, 40.0, 0.7)
    assert line == "sigma_min 0.01, sigma_max 40, sigma_data 0.7: the teacher's"
    assert settled(teacher=TEACHER, sigma_data=0.7, sigma_min=0.01, sigma_max=40.0) == ((0.01, 40.0, 0.7), [])


@pytest.mark.parametrize(("given", "value"), [("sigma_min", 0.009), ("sigma_max", 41.0)])
@pytest.mark.parametrize("copies", [True, False])
def test_case_08_levels_beyond_the_teachers_are_refused(given, value, copies):
    with pytest.raises(
        ValueError, match=r"go beyond those that the teacher has learned, 0\.01 to 40: set model.sigma_min"
    ):
        settled(teacher=TEACHER, copies=copies, **{given: value})


def test_case_08_levels_within_the_teachers_are_taken():
    assert settled(teacher=TEACHER, sigma_min=0.05, sigma_max=20.0)[0] == (0.05, 20.0, 0.7)


def test_case_08_another_deviation_than_the_teachers_is_refused_where_its_weights_are_copied():
    with pytest.raises(ValueError, match=r"model.sigma_data is 0.3, and the teacher's is 0.7: .*--start_from random"):
        settled(teacher=TEACHER, sigma_data=0.3)
    assert settled(teacher=TEACHER, sigma_data=0.3, copies=False)[0] == (0.01, 40.0, 0.3)


@pytest.mark.parametrize("name", ["sigma_min", "sigma_max", "sigma_data"])
def test_a_starting_student_keeps_its_levels(name):
    assert settled(student=STUDENT, teacher=TEACHER)[0] == (0.02, 30.0, 0.6)
    with pytest.raises(ValueError, match=rf"model.{name} is 0.5, and the starting student's is"):
        settled(student=STUDENT, teacher=TEACHER, **{name: 0.5})


def test_case_08_the_command(tmp_path, capsys):
    """sigma_data of a student differs from its teacher's: refused, exit 2; unset: the teacher's."""
    teacher = trained(tmp_path / "teacher", teacher_arguments("--steps", "1", "--model.sigma_data", "0.7"))
    arguments = student_arguments(teacher, "--steps", "1", "--out", str(tmp_path / "run"))
    for name, value, words in (
        ("sigma_data", "0.3", "model.sigma_data is 0.3, and the teacher's is 0.7"),
        ("sigma_min", "0.0002", "0.0002 to 80, go beyond those that the teacher has learned, 0.002 to 80"),
        ("sigma_max", "160", "0.002 to 160, go beyond"),
    ):
        changes = ["--model.sigma_data", "null", f"--model.{name}", value]
        assert main(["train", *arguments, *changes]) == 2
        told = capsys.readouterr().err
        assert words in told
        assert f"--model.{name} null" in " ".join(told.split())
        assert not (tmp_path / "run").exists()
    assert main(["train", *arguments, "--model.sigma_data", "null"]) == 0
    assert "sigma_data 0.7: the teacher's" in capsys.readouterr().out
    assert load_model(tmp_path / "run").sigma_data == 0.7
