"""`ctm edit` on real files: what is written, the rules for pictures, and each mistake as a sentence."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from ctm import Arrays, Labels, TrajectoryModel
from ctm.commands.edit.inputs import for_model, read, to_fill
from ctm.editing import averaging
from ctm.networks import MLP

from ..conftest import random_weights, slow
from .test_cli import model, run, sentence  # noqa: F401

GREY = "models/digits-ctm"
TEACHER = "models/digits-teacher"


def picture(path, values, mode=None):
    Image.fromarray(np.asarray(values), mode).save(path)
    return path


@pytest.fixture
def three(tmp_path):
    """A digit, its mask and a small copy."""
    from ctm.data import load_images

    pixels = load_images("digits").pixels[3, :, :, 0]
    mask = np.zeros((8, 8), np.uint8)
    mask[2:6, 2:6] = 255
    picture(tmp_path / "mask.png", mask)
    picture(tmp_path / "small.png", pixels.reshape(4, 2, 4, 2).mean((1, 3)).round().astype(np.uint8))
    return picture(tmp_path / "digit.png", pixels)


@pytest.fixture(scope="module")
def colour(tmp_path_factory):
    """A small colour CTM with random weights."""
    place = tmp_path_factory.mktemp("colour") / "model"
    random_weights(TrajectoryModel(MLP((3, 8, 8), width=16, blocks=1), shape=(3, 8, 8))).save_pretrained(place)
    return place


def pixels_of(path):
    return np.asarray(Image.open(path))


TASKS = {
    "inpaint": ["--mask", "mask.png", "--num", 2, "--steps", 3],
    "stroke": ["--sigma", 1, "--num", 2, "--steps", 2],
    "denoise": ["--sigma", 0.3, "--num", 1, "--steps", 3],
    "vary": ["--num", 2, "--amount", 0.5, "--labels", 3],
}


@pytest.mark.parametrize(
    ("task", "source"),
    [slow(task, source) if task == "vary" else (task, source) for task in TASKS for source in (GREY, TEACHER)],
)
def test_each_edit_writes_pictures_and_their_record_twice_the_same(capsys, three, tmp_path, task, source):
    """For a CTM and a diffusion model alike, but for strokes, which need jumps."""
    options = [tmp_path / value if value == "mask.png" else value for value in TASKS[task]]
    if task == "stroke" and source == TEACHER:
        assert "cannot jump: stroke to image needs a CTM" in sentence(capsys, "edit", task, source, three, *options)
        return
    for name in ("a", "b"):
        code, printed, _ = run(capsys, "edit", task, source, three, *options, "--out", tmp_path / name)
        assert code == 0
        assert f"2 results in {tmp_path / name}" in printed
        about = json.loads((tmp_path / name / "edit.json").read_text())
        assert (about["task"], about["num"], about["seed"]) == (task, 2, 0)
    for i in range(2):
        first, second = (pixels_of(tmp_path / name / f"{i:06d}.png") for name in ("a", "b"))
        assert first.shape == (8, 8)
        assert np.array_equal(first, second)
    assert np.array_equal(pixels_of(tmp_path / "a" / "input.png"), pixels_of(three))
    code, _, _ = run(capsys, "edit", source, task, three, *options, "--seed", 1, "--out", tmp_path / "strip.png")
    assert code == 0  # the model may stand first
    assert Image.open(tmp_path / "strip.png").width > 3 * 128


@pytest.fixture(scope="module")
def fields_model(tmp_path_factory):
    """A small grey CTM of three classes with an observation of two numbers, of random weights."""
    place, shape, arrays = tmp_path_factory.mktemp("fields") / "model", (1, 8, 8), {"observation": (2,)}
    network = MLP(shape, 3, width=16, blocks=1, arrays=arrays)
    random_weights(TrajectoryModel(network, shape=shape, conditioner=Labels(3) | Arrays(arrays))).save_pretrained(place)
    return place


FIELDS = {
    "inpaint": (["--mask", "mask.png", "--steps", 2], 2),
    "superresolve": (["--factor", 2, "--steps", 2, "--method", "guided"], 2),
    "stroke": (["--sigma", 1, "--steps", 2], 2),
    "denoise": (["--sigma", 0.3, "--num", 1, "--steps", 3], 1),
    "vary": (["--num", 2], 1),
    "interpolate": (["--num", 2], 2),
}


@pytest.mark.parametrize("task", [slow(task) if task == "interpolate" else task for task in FIELDS])
def test_an_edit_takes_the_fields_of_a_file(capsys, three, fields_model, tmp_path, task):
    """Each edit under two rows that differ, and under none. The record names the file. One result for each row where --num says
    nothing; where a row is a picture's own, another number of rows is refused."""
    options, rows = FIELDS[task]
    options = [tmp_path / value if value == "mask.png" else value for value in options]
    pictures = [three, tmp_path / "mask.png"] if task == "interpolate" else [three]
    made = {}
    for name, values in {"a": [[1, 2], [3, 4]], "b": [[-2, 1], [0, 5]], "none": None}.items():
        given = []
        if values is not None:
            np.savez(tmp_path / f"{name}.npz", observation=np.array(values[:rows], dtype=np.float32))
            given = ["--condition", tmp_path / f"{name}.npz"]
        code, _, said = run(capsys, "edit", task, fields_model, *pictures, *options, *given, "--labels", "1,2"[: 2 * rows - 1],
            "--out", tmp_path / name)  # fmt: skip
        assert code == 0, said
        about = json.loads((tmp_path / name / "edit.json").read_text())
        assert about.get("condition", {}).get("file") == (None if values is None else f"{name}.npz")
        assert about["num"] == 2
        made[name] = np.stack([pixels_of(tmp_path / name / f"{i:06d}.png") for i in range(2)]).astype(int)
    if task != "interpolate":  # its ends are the pictures themselves, whatever the condition
        assert np.abs(made["a"] - made["b"]).max() > 0
        assert np.abs(made["a"] - made["none"]).max() > 0
    if task in ("denoise", "vary", "interpolate"):
        np.savez(tmp_path / "three.npz", observation=np.zeros((3, 2), np.float32))
        said = sentence(capsys, "edit", task, fields_model, *pictures, *options, "--condition", tmp_path / "three.npz")
        assert f"--condition of {task} takes" in said
        assert "has 3" in said


def test_a_model_without_fields_takes_none_in_an_edit(capsys, three, tmp_path):
    np.savez(tmp_path / "a.npz", observation=np.zeros((1, 2), np.float32))
    said = sentence(capsys, "edit", "vary", GREY, three, "--condition", tmp_path / "a.npz")
    assert "this model takes no fields, leave it out" in said


@pytest.mark.parametrize("method", ["replace", "guided"])
def test_what_is_known_is_kept(capsys, three, tmp_path, method):
    """Of the filled picture every pixel outside the mask, of the enlarged one every mean, to the rounding of a file."""
    options = ["--num", 2, "--steps", 3, "--method", method]
    assert (
        run(
            capsys, "edit", "inpaint", GREY, three, "--mask", tmp_path / "mask.png", *options, "--out", tmp_path / "in"
        )[0]
        == 0
    )
    assert run(capsys, "edit", "superres", GREY, tmp_path / "small.png", *options, "--out", tmp_path / "up")[0] == 0
    kept, small = pixels_of(tmp_path / "mask.png") == 0, pixels_of(tmp_path / "small.png").astype(float)
    for i in range(2):
        filled, large = (pixels_of(tmp_path / name / f"{i:06d}.png").astype(float) for name in ("in", "up"))
        assert np.array_equal(filled[kept], pixels_of(three)[kept])
        means = averaging((8, 8), (4, 4)).A(torch.tensor(large)[None, None])[0, 0].numpy()
        assert np.abs(means - small).max() <= 1


def test_a_reduced_picture_can_be_compared_with_itself(capsys, three, tmp_path):
    code, printed, _ = run(
        capsys, "edit", "superresolve", GREY, three, "--factor", 1.6, "--steps", 2, "--out", tmp_path / "up"
    )
    assert code == 0
    assert "reduced to 5×5, by a factor of 1.6" in printed
    assert pixels_of(tmp_path / "up" / "known.png").shape == (5, 5)


def test_colour_is_laid_over_the_luma(capsys, colour, three, tmp_path):
    code, printed, _ = run(
        capsys, "edit", "colorize", colour, three, "--num", 1, "--steps", 2, "--out", tmp_path / "coloured"
    )
    assert code == 0
    made = pixels_of(tmp_path / "coloured" / "000000.png").astype(float)
    luma = made @ [0.299, 0.587, 0.114]
    allowed = float(printed.split("to within ")[1].split(" of")[0]) + 0.01
    assert np.abs(luma - pixels_of(three)).max() <= allowed
    assert (made.max(-1) - made.min(-1)).max() > 5


def test_an_interpolation_has_its_pictures_at_its_ends(capsys, three, tmp_path):
    other = picture(tmp_path / "other.png", pixels_of(three)[:, ::-1])
    out = tmp_path / "between"
    code, printed, _ = run(
        capsys, "edit", "interpolate", GREY, three, other, "--num", 3, "--labels", "3,3", "--out", out
    )
    assert code == 0
    deviation = float(printed.split("to within ")[1].split(" of")[0])
    for name, given in (("000000", three), ("000002", other)):
        found = pixels_of(out / f"{name}.png").astype(float)
        assert np.abs(found - pixels_of(given)).max() <= deviation + 0.6
    assert not np.array_equal(pixels_of(out / "000001.png"), pixels_of(three))


def test_files_of_any_mode_become_the_same_picture(small_ctm, three, tmp_path, capsys):
    """16 bits are divided by 257, alpha is laid over white, palettes are expanded, colour becomes luma, larger ones resized."""
    grey = pixels_of(three)
    expected = for_model(read(str(three)), "x", small_ctm)
    picture(tmp_path / "16.png", grey.astype(np.uint16) * 257)
    Image.fromarray(grey).convert("P").save(tmp_path / "palette.png")
    Image.fromarray(np.stack([grey] * 3, -1)).save(tmp_path / "colour.png")
    Image.fromarray(np.stack([grey] * 3 + [np.full_like(grey, 255)], -1)).save(tmp_path / "alpha.png")
    Image.fromarray(grey.repeat(4, 0).repeat(4, 1)).save(tmp_path / "large.png")
    for name in ("16", "palette", "colour", "alpha", "large"):
        file = str(tmp_path / f"{name}.png")
        torch.testing.assert_close(for_model(read(file), file, small_ctm), expected, msg=name)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    Image.fromarray(np.rot90(grey)).save(tmp_path / "turned.png", exif=exif)
    Image.fromarray(grey.astype(np.float32) / 255).save(tmp_path / "float.tif")
    for name in ("turned.png", "float.tif"):
        file = str(tmp_path / name)
        torch.testing.assert_close(for_model(read(file), file, small_ctm), expected, msg=name)
    said = capsys.readouterr().out
    assert "turned.png is turned upright by its EXIF orientation" in said
    assert "float.tif holds floats within [0, 1]: read as 0 … 255" in said
    assert "large.png: 32×32 resized and centre-cropped to the model's 8×8" in said
    assert "colour.png: colours are taken as grey (luma)" in said
    clear = np.stack([grey] * 3 + [np.where(grey > 0, 255, 0).astype(np.uint8)], -1)
    Image.fromarray(clear).save(tmp_path / "clear.png")
    over_white = for_model(read(str(tmp_path / "clear.png")), "x", small_ctm)[0]
    assert bool((over_white[torch.tensor(grey == 0)] == 1).all())


def test_a_mask_grows_to_all_pixels_it_touches(tmp_path):
    """Of a mask of 16 × 16 on a model of 8 × 8; without a mask the transparent part is filled."""
    mask = np.zeros((16, 16), np.uint8)
    mask[3, 3] = 255
    picture(tmp_path / "mask.png", mask)
    image = Image.new("L", (16, 16))
    fill = to_fill(image, "image", str(tmp_path / "mask.png"), 8)
    assert fill.nonzero().tolist() == [[0, 1, 1]]
    clear = Image.fromarray(np.stack([mask] * 3 + [255 - mask], -1))
    assert torch.equal(to_fill(clear, "image", None, 8), fill)


MISTAKES = [
    ("inpaint", ["{digit}"], "has no transparent parts: give --mask FILE"),
    ("inpaint", ["{digit}", "--mask", "{small}"], "is 4×4, but"),
    (
        "inpaint",
        ["{digit}", "--mask", "{black}"],
        "(white is filled, black is kept): there is nothing to fill",
    ),
    ("inpaint", ["{digit}", "--mask", "{white}"], "is white everywhere: there is nothing to keep"),
    ("inpaint", ["{digit}", "--mask", "{text}"], "cannot be read as a picture"),
    ("inpaint", ["{digit}", "--mask", "{missing}"], "there is no picture"),
    (
        "inpaint",
        ["{digit}", "--mask", "{mask}", "--method", "magic"],
        "--method must be replace or guided, got 'magic'",
    ),
    (
        "inpaint",
        ["{digit}", "--mask", "{mask}", "--method", "guided", "--rounds", "3"],
        "--rounds belongs to --method replace",
    ),
    ("inpaint", ["{digit}", "--mask", "{mask}", "--labels", "12"], "12"),
    ("inpaint", ["{digit}", "--mask", "{mask}", "--num", "0"], "--num must be at least 1, got 0"),
    ("superresolve", ["{digit}"], "so there is nothing to enlarge: give a smaller one"),
    ("superresolve", ["{digit}", "--factor", "0.5"], "--factor must make 8 pixels fewer"),
    ("colourise", ["{digit}"], "makes grey pictures: colourising needs a model of 3 channels"),
    ("stroke", ["{digit}", "--sigma", "90"], "sigma must be above sigma_min"),
    ("stroke", ["{digit}", "--sigma", "1", "--gamma", "2"], "gamma must be in [0, 1]"),
    ("stroke", ["{folder}", "--sigma", "1"], "is a directory: give one picture file"),
    ("denoise", ["{digit}", "--sigma", "0"], "sigma must be above sigma_min"),
    ("denoise", ["{digit}", "--sigma", "1", "--num", "-1"], "--num must be at least 0, got -1"),
    (
        "interpolate",
        ["{digit}", "{small}", "--num", "1"],
        "num must be a whole number of at least 2, got 1: an interpolation has its two ends",
    ),
    ("interpolate", ["{digit}", "{small}", "--labels", "3"], "takes two classes, those of both pictures, got '3'"),
    ("vary", ["{digit}", "--amount", "2"], "amount must be in [0, 1], got 2"),
    ("vary", ["{digit}", "--labels", "0-3"], "takes one class, the picture's, got '0-3'"),
]


@pytest.mark.parametrize(("task", "arguments", "message"), MISTAKES)
def test_mistakes_are_one_sentence_and_write_nothing(capsys, three, tmp_path, task, arguments, message):
    picture(tmp_path / "black.png", np.zeros((8, 8), np.uint8))
    picture(tmp_path / "white.png", np.full((8, 8), 255, np.uint8))
    (tmp_path / "text.png").write_text("no picture")
    files = {name: tmp_path / f"{name}.png" for name in ("digit", "small", "mask", "black", "white", "text", "missing")}
    given = [argument.format(**files, folder=tmp_path) for argument in arguments]
    assert message in sentence(capsys, "edit", task, GREY, *given, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_nothing_that_is_read_is_written_over(capsys, three, tmp_path):
    before = three.read_bytes()
    for out in (three, tmp_path):
        assert "would write over" in sentence(capsys, "edit", "vary", GREY, three, "--out", out)
    assert three.read_bytes() == before


def test_samples_are_not_written_over_under_their_record(capsys, three, tmp_path):
    assert run(capsys, "sample", GREY, "--num", 4, "--out", tmp_path / "made")[0] == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "made").iterdir()}
    assert "holds samples (it has sample.json)" in sentence(
        capsys, "edit", "vary", GREY, three, "--num", 4, "--out", tmp_path / "made"
    )
    assert {path.name: path.read_bytes() for path in (tmp_path / "made").iterdir()} == before


def test_a_model_of_vectors_is_named(capsys, three, tmp_path):
    TrajectoryModel(MLP((2,), width=8, blocks=1), shape=(2,)).save_pretrained(tmp_path / "flat")
    assert "edits need square pictures of 1 or 3 channels" in sentence(capsys, "edit", "vary", tmp_path / "flat", three)


def test_case_05_the_class_of_a_picture_by_name(capsys, small_ctm, three, tmp_path):
    small_ctm.class_names = [*"abcdefghi", "Ankle boot"]
    small_ctm.save_pretrained(tmp_path / "named")
    arguments = [
        "denoise",
        tmp_path / "named",
        three,
        "--sigma",
        "0.3",
        "--labels",
        "Ankle boot",
        "--out",
        tmp_path / "out",
    ]
    assert run(capsys, "edit", *arguments)[0] == 0
    assert json.loads((tmp_path / "out" / "edit.json").read_text())["labels"] == [9]
