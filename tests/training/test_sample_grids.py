"""When a run draws sample grids, and that each column is of one class."""

import numpy as np
import pytest
from PIL import Image

from ctm.training import sample_grids
from ctm.training.sample_grids import GridClock, column_labels

from .runs import student_arguments, teacher_arguments, trained


class Time:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def test_the_first_grid_comes_early_and_the_others_in_time():
    time, due = Time(), []
    clock = GridClock(2.0, time)
    for second in range(400):
        time.now = float(second)
        if clock.due:
            due.append(second)
            clock.drawn(1.0)
    assert due == [30, 150, 270, 390]


def test_grids_that_take_long_come_less_often():
    time = Time()
    clock = GridClock(2.0, time)
    time.now = 60.0
    clock.drawn(30.0)
    time.now = 60.0 + 20 * 30 - 1
    assert not clock.due
    time.now += 1
    assert clock.due


def test_without_minutes_none_is_due():
    time = Time()
    clock = GridClock(None, time)
    time.now = 1e9
    clock.drawn(1.0)
    assert not clock.due


@pytest.mark.parametrize(
    ("classes", "columns"),
    [
        (10, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]),
        (3, [0, 0, 0, 0, 1, 1, 1, 2, 2, 2]),
        (1, [0] * 10),
        (1000, [0, 100, 200, 300, 400, 500, 600, 700, 800, 900]),
    ],
)
def test_each_column_is_a_class(classes, columns):
    assert column_labels(classes).tolist() == columns


def test_no_columns_by_class_without_classes():
    assert column_labels(0) is None


@pytest.mark.parametrize("kind", ["teacher", "student"])
def test_the_labels_of_a_column_are_the_same_in_every_row(tmp_path, monkeypatch, kind):
    """Of three classes, so that ten columns do not divide by them."""
    drawn, generate = [], sample_grids.generate

    def noted(model, count, **options):
        drawn.append(options["condition"].tolist())
        return generate(model, count, **options)

    images = np.random.default_rng(0).integers(0, 256, (9, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "set.npz", images=images, labels=np.arange(9) % 3)
    data = ["--data.name", str(tmp_path / "set.npz"), "--data.batch_size", "4", "--steps", "1"]
    teacher = trained(tmp_path / "teacher", teacher_arguments(*data))
    monkeypatch.setattr(sample_grids, "generate", noted)
    arguments = teacher_arguments(*data) if kind == "teacher" else student_arguments(teacher, *data)
    out = trained(tmp_path / "run", arguments)
    once = [0, 0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert drawn == ([once + once] if kind == "teacher" else [once] * 4)
    rows, side = (2 if kind == "teacher" else 4), 9
    with Image.open(out / "samples" / "000001.png") as picture:
        assert picture.width * (rows * side + 1) == picture.height * (10 * side + 1)


def test_a_run_draws_grids_by_time_and_ends_with_the_same_bits(tmp_path):
    """Every thousandth of a second, which is every step or so, and never: the weights are the same."""
    often = trained(tmp_path / "often", teacher_arguments("--steps", "6", "--sample_minutes", "1e-6"))
    never = trained(tmp_path / "never", teacher_arguments("--steps", "6", "--sample_minutes", "null"))
    assert len(list((often / "samples").glob("*.png"))) > 1
    assert [path.name for path in (never / "samples").glob("*.png")] == ["000006.png"]
    models = [(out / "model" / "model.safetensors").read_bytes() for out in (often, never)]
    assert models[0] == models[1]
