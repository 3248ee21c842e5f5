"""`ctm sample --columns`: samples in columns, by class or by number."""

import numpy as np
import pytest
import torch
from PIL import Image

from ctm import DiffusionModel, generate
from ctm.networks import MLP
from ctm.pictures import class_columns, grid_picture, to_uint8

from ..conftest import random_weights
from .test_cli import model, run, sentence  # noqa: F401


def cells(path, side: int = 8) -> np.ndarray:
    """The pixels of a grid: (rows, columns, side, side), not enlarged."""
    sheet = Image.open(path)
    scale = _scale(sheet.size, side)
    pixels = np.asarray(sheet)[::scale, ::scale]
    rows, columns = ((length - 1) // (side + 1) for length in pixels.shape[:2])
    grid = [
        [pixels[r * (side + 1) + 1 :, c * (side + 1) + 1 :][:side, :side] for c in range(columns)] for r in range(rows)
    ]
    return np.array(grid)


def _scale(size: tuple[int, int], side: int) -> int:
    """By what a sheet of whole cells was enlarged: the largest factor that leaves whole cells."""
    return next(k for k in range(80, 0, -1) if all(n % k == 0 and (n // k - 1) % (side + 1) == 0 for n in size))


def test_images_stand_below_others_of_their_class():
    places, classes = class_columns([2, 0, 2, 2, 0, 7])
    assert classes == [0, 2, 7]
    assert places == [1, 0, 5, 4, 2, None, None, 3, None]
    assert class_columns([]) == ([], [])


def test_an_empty_cell_is_the_ground():
    picture = grid_picture(torch.ones(2, 1, 4, 4), columns=2, scale=1, places=[0, None, 1, None])
    pixels = np.asarray(picture)
    assert picture.size == (11, 11)
    assert (pixels[1:5, 1:5] == 255).all()
    assert (pixels[:, 6:] == 32).all()


@pytest.mark.parametrize("labels", ["3,3,7,0,3", None])
def test_one_column_for_each_class(capsys, model, small_ctm, tmp_path, labels):  # noqa: F811
    """Also without --labels: then all classes in turn."""
    asked = [3, 3, 7, 0, 3] * 4 if labels else list(range(10)) * 2
    options = ["--labels", labels] if labels else []
    out = tmp_path / "x.png"
    assert run(capsys, "sample", model, "--num", 20, *options, "--columns", "class", "--out", out)[0] == 0
    expected = to_uint8(generate(small_ctm, 20, condition=torch.tensor(asked)))[..., 0].numpy().astype(int)
    grid = cells(out).astype(int)
    columns = sorted(set(asked))
    assert grid.shape[:2] == (max(asked.count(label) for label in columns), len(columns))
    for column, label in enumerate(columns):
        of_class = [image for image, its in zip(expected, asked, strict=True) if its == label]
        for row, image in enumerate(of_class):
            assert np.abs(grid[row, column] - image).max() <= 1
        assert (grid[len(of_class) :, column] == 32).all()


def test_a_number_of_columns(capsys, model, tmp_path):  # noqa: F811
    for asked, shape in ((3, (3, 3)), (7, (1, 7)), (100, (1, 7))):
        assert run(capsys, "sample", model, "--num", 7, "--columns", asked, "--out", tmp_path / "x.png")[0] == 0
        assert cells(tmp_path / "x.png").shape[:2] == shape


@pytest.mark.parametrize(
    ("columns", "out", "message"),
    [
        ("0", "x.png", "--columns takes a number from 1 on, or class, got '0'"),
        ("classes", "x.png", "--columns takes a number from 1 on, or class, got 'classes'"),
        ("3", "x.npz", "--columns 3 is for one picture, --out FILE.png"),
        ("class", "folder", "--columns class is for one picture"),
    ],
)
def test_columns_that_cannot_be(capsys, model, tmp_path, columns, out, message):  # noqa: F811
    assert message in sentence(capsys, "sample", model, "--columns", columns, "--out", tmp_path / out)
    assert not (tmp_path / out).exists()


def test_a_model_without_classes_has_no_columns_by_class(capsys, tmp_path):
    network = random_weights(MLP((1, 8, 8), width=16, blocks=1, embedding=8, s_embedding=False))
    DiffusionModel(network, shape=(1, 8, 8)).save_pretrained(tmp_path / "plain")
    err = sentence(capsys, "sample", tmp_path / "plain", "--columns", "class", "--out", tmp_path / "x.png")
    assert "--columns class: this model has no classes, give a number" in err


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ["--labels", "3", "--columns", "class"],
            "--columns class: all samples are of class 3, so the picture has one column",
        ),
        (["--num", "1", "--columns", "class"], "--columns class: all samples are of class 0"),
        (["--num", "3", "--columns", "9"], "--columns 9: there are 3 samples, so the picture has 3 columns"),
        (["--labels", "3,4", "--columns", "class"], None),
        (["--num", "9", "--columns", "9"], None),
    ],
)
def test_columns_that_change_nothing_are_said(model, capsys, caplog, tmp_path, arguments, line):  # noqa: F811
    assert run(capsys, "sample", model, *arguments, "--out", tmp_path / "x.png")[0] == 0
    said = [message for message in caplog.messages if "--columns" in message]
    assert said == [] if line is None else line in said[0]
