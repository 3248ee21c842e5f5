"""Pictures of any height and width, of one to many channels, from arrays, folders and tables; through training and evaluation."""

import json
from functools import partial

import numpy as np
import pytest
from PIL import Image

from ctm import load_model
from ctm.cli import main
from ctm.data import load_images
from ctm.data.resize import fit
from ctm.evaluation import reference
from ctm.evaluation.classifier import train_classifier

from ..training.runs import RECIPES

RANDOM = np.random.default_rng(0)


@pytest.mark.parametrize("own", [(48, 80), (40, 24), (7, 100), (24, 40), (20, 20), (600, 3)], ids=str)
@pytest.mark.parametrize("size", [(24, 40), (9, 3), (1, 8)], ids=str)
def test_a_constant_picture_stays_so_at_every_size(own, size):
    assert np.asarray(fit(Image.new("RGB", own[::-1], (9, 8, 7)), size)).tolist() == [[[9, 8, 7]] * size[1]] * size[0]


def test_a_picture_of_twice_the_size_is_its_halves_mean():
    pixels = RANDOM.integers(0, 256, (48, 80), dtype=np.uint8)
    mean = pixels.reshape(24, 2, 40, 2).mean((1, 3))
    assert np.abs(np.asarray(fit(Image.fromarray(pixels), (24, 40))) - mean).max() <= 1  # Pillow rounds along each axis


def test_the_centre_is_kept():
    """A ramp along the width, cut at both ends: 24 × 40 of 24 × 60 are the columns 10 … 49."""
    pixels = np.broadcast_to(np.arange(60, dtype=np.uint8), (24, 60))
    np.testing.assert_array_equal(np.asarray(fit(Image.fromarray(pixels.copy()), (24, 40)))[0], np.arange(10, 50))


def test_a_long_picture_is_cut_before_it_is_enlarged():
    """Else one of 1 × 100,000 would become 240 × 24 million."""
    assert fit(Image.new("L", (100_000, 1), 5), (240, 400)).getpixel((3, 3)) == 5


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 7])
def test_arrays_of_any_size_and_channels(tmp_path, channels):
    pixels = RANDOM.integers(0, 256, (5, 12, 20, channels), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", images=pixels)
    np.testing.assert_array_equal(load_images(str(tmp_path / "a.npz"), [12, 20]).pixels, pixels)
    halves = load_images(str(tmp_path / "a.npz"), [6, 10])
    assert halves.shape == (channels, 6, 10)
    mean = pixels.reshape(5, 6, 2, 10, 2, channels).mean((2, 4))
    assert np.abs(halves.pixels - mean).max() <= 1  # Pillow rounds along each axis
    with pytest.raises(
        ValueError, match=r"12 high and 20 wide, not square: give --data.size '\[12, 20\]' to take them"
    ):
        load_images(str(tmp_path / "a.npz"))
    if channels not in (1, 3):
        with pytest.raises(ValueError, match=rf"images have {channels} channels, which are taken as they are"):
            load_images(str(tmp_path / "a.npz"), [12, 20], 3)


def test_a_folder_at_two_sizes_has_two_caches(tmp_path, monkeypatch):
    monkeypatch.setenv("CTM_CACHE", str(tmp_path / "cache"))
    (tmp_path / "p").mkdir()
    for number in range(3):
        Image.fromarray(RANDOM.integers(0, 256, (24, 40, 3), dtype=np.uint8)).save(tmp_path / "p" / f"{number}.png")
    assert load_images(str(tmp_path / "p"), [24, 40]).shape == (3, 24, 40)
    assert load_images(str(tmp_path / "p"), [12, 20]).shape == (3, 12, 20)
    assert load_images(str(tmp_path / "p"), 12).shape == (3, 12, 12)
    assert len(list((tmp_path / "cache").glob("folder-*.npy"))) == 3
    with pytest.raises(
        ValueError,
        match=r"is 24 high and 40 wide, not square: give --data.size '\[24, 40\]', or one number for squares",
    ):
        load_images(str(tmp_path / "p"))


def test_what_is_cropped_is_said_with_the_form(tmp_path, monkeypatch):
    monkeypatch.setenv("CTM_CACHE", str(tmp_path / "cache"))
    (tmp_path / "p").mkdir()
    Image.new("L", (40, 24), 5).save(tmp_path / "p" / "0.png")
    Image.new("L", (40, 30), 5).save(tmp_path / "p" / "1.png")
    line = "1 of 2 pictures has another form than 24 high and 40 wide: cropped to their centre"
    assert line in load_images(str(tmp_path / "p"), [24, 40]).notes
    assert "2 of 2 pictures are not square: cropped to their centre" in load_images(str(tmp_path / "p"), 12).notes
    np.savez(tmp_path / "a.npz", images=np.zeros((2, 24, 40), np.uint8))
    line = "all images are 24 high and 40 wide: cropped to the form of 12 high and 12 wide"
    assert line in load_images(str(tmp_path / "a.npz"), 12).notes


@pytest.mark.parametrize("size", [[3], [1, 2, 3], [0, 4], [2.0, 4], 0], ids=str)
def test_what_is_no_size_is_refused(size):
    with pytest.raises(ValueError, match=r"data.size"):
        load_images("digits", size)


@pytest.mark.parametrize("channels", [pytest.param(3, marks=pytest.mark.slow), 4])
def test_a_run_on_wide_pictures_samples_and_is_evaluated(tmp_path, channels, monkeypatch):
    monkeypatch.setenv("CTM_CACHE", str(tmp_path / "cache"))
    data = tmp_path / "a.npz"
    np.savez(data, images=RANDOM.integers(0, 256, (40, 8, 16, channels), dtype=np.uint8), labels=np.arange(40) % 2)
    small = json.dumps({"channels": 8, "channel_mult": [1, 2], "blocks": 1, "s_embedding": False})
    given = [
        "train",
        "--config",
        str(RECIPES / "digits-teacher.yaml"),
        "--data.name",
        str(data),
        "--data.size",
        "[8, 16]",
    ]
    given += ["--network.class_path", "ctm.networks.DDPMpp", "--network.init_args", small, "--steps", "1"]
    assert main([*given, "--data.batch_size", "4", "--out", str(tmp_path / "run")]) == 0
    assert load_model(tmp_path / "run").shape == (channels, 8, 16)
    out = tmp_path / "s.npz"
    assert main(["sample", str(tmp_path / "run"), "--num", "3", "--steps", "2", "--out", str(out)]) == 0
    with np.load(out) as made:
        assert (made["arr_0"].shape, made["arr_0"].dtype) == ((3, 8, 16, channels), np.uint8)
    features = ["--features", "classifier"] if channels == 3 else []
    monkeypatch.setattr(reference, "train_classifier", partial(train_classifier, steps=5))
    given = ["evaluate", str(tmp_path / "run"), "--data", str(data), "--num", "20", "--steps", "2", *features]
    assert main([*given, "--out", str(tmp_path / "e")]) == 0
    assert "frechet" in (tmp_path / "e" / "result.json").read_text()
