"""The digest of a data set is that of its content, and its standard deviation is counted in whole numbers."""

import os

import numpy as np
import pytest

from ctm.data import Images, load_images
from ctm.data.digest import LIMIT, digest_of
from ctm.training.levels import measured_deviation


def pictures(n=30, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, 5, 5, 3), dtype=np.uint8)


def test_a_digest_is_the_same_wherever_the_set_lies_and_however_it_is_stored(tmp_path):
    pixels, labels = pictures(), np.arange(30) % 3
    digest = digest_of(Images(pixels, labels, ["a", "b", "c"], "here"))
    np.save(tmp_path / "pixels.npy", pixels)
    mapped = np.load(tmp_path / "pixels.npy", mmap_mode="r")
    assert digest_of(Images(mapped, labels.astype(np.int32), ["a", "b", "c"], "there")) == digest
    assert digest.whole


def test_the_digest_of_the_shipped_digits_is_the_same_on_every_machine():
    digest = digest_of(load_images("digits"))
    assert digest.value == "cf2030ed1e78ca27cf9ab19e8120924443ff98c2dd52d1e418760f21477f95a3"


@pytest.mark.parametrize("limit", [LIMIT, 0])
@pytest.mark.parametrize("what", ["pixel", "label", "name", "order", "no labels", "size", "channels", "array"])
def test_a_digest_sees_every_change(tmp_path, what, limit):
    """Also beyond the limit, where one pixel of a file that is the same can not be another."""
    pixels, labels, names = pictures(), np.arange(30) % 3, ["a", "b", "c"]
    before = digest_of(Images(pixels.copy(), labels.copy(), list(names), str(tmp_path)), limit)
    assert before.whole == (limit > 0)
    if what == "pixel":
        pixels[29, 4, 4, 2] ^= 1
    elif what == "label":
        labels[29] = 0
    elif what == "name":
        names[1] = "B"
    elif what == "order":
        pixels[[0, 3]] = pixels[[3, 0]]
    elif what == "size":
        pixels = pixels[:, :4, :4]
    elif what == "channels":
        pixels = pixels[..., :1]
    elif what == "array":
        pixels = pictures(seed=1)
    after = (None, []) if what == "no labels" else (labels, names)
    assert digest_of(Images(pixels, *after, str(tmp_path)), limit).value != before.value


def test_a_large_set_is_told_by_its_files_and_says_so(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.png").write_bytes(bytes(number + 1))
    images = Images(pictures(), name=str(folder))
    before = digest_of(images, limit=100)
    assert not before.whole
    assert before.of == "names, sizes and times of the files, 16 pictures, shape, labels and class names"
    assert digest_of(images, limit=100) == before
    os.utime(folder / "1.png", ns=(1, 1))
    changed = digest_of(images, limit=100)
    assert changed.value != before.value
    assert digest_of(Images(pictures(), name="no-such-path"), limit=100).whole


def test_the_measured_deviation_is_numpys():
    images = Images(pictures(200))
    deviation, count = measured_deviation(images)
    assert count == 200
    assert deviation == pytest.approx((images.pixels / 127.5 - 1).std(), abs=5e-5)


def test_a_large_set_is_measured_on_a_seeded_draw():
    images = Images(pictures(200))
    deviation, count = measured_deviation(images, most=75 * 50)
    assert count == 50
    assert (deviation, count) == measured_deviation(images, most=75 * 50)
    assert deviation == pytest.approx(measured_deviation(images)[0], rel=0.1)  # 3,750 of 15,000 values


def test_a_set_of_one_value_has_no_deviation():
    with pytest.raises(ValueError, match=r"all pixels of flat have the same value.*give --model.sigma_data"):
        measured_deviation(Images(np.full((3, 4, 4, 1), 7, np.uint8), name="flat"))
