"""Data made to cost memory, or to break what reads it: refused in a sentence, or read at its own price."""

import time
import tracemalloc
import zipfile

import numpy as np
import pytest
from PIL import Image

from ctm.data import load_images
from ctm.data.archive import Archive
from ctm.data.classes import read_labels
from ctm.data.files import open_picture
from ctm.data.resize import fit
from ctm.data.stack import Frame


def test_a_long_thin_picture_costs_no_more_than_its_centre():
    started = time.monotonic()
    assert fit(Image.new("RGB", (1, 100_000), (9, 8, 7)), 256).getpixel((5, 5)) == (9, 8, 7)
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("size", [(10, 80), (80, 10), (12, 97), (64, 515)])
def test_the_centre_of_a_long_picture_is_that_of_its_whole(size):
    rows, columns = np.mgrid[: size[1], : size[0]]
    picture = Image.fromarray(((np.sin(rows / 7) + np.cos(columns / 5) + 2) * 60).astype(np.uint8))
    shorter = min(size)
    left, top = (size[0] - shorter) // 2, (size[1] - shorter) // 2
    centre = np.asarray(picture.crop((left, top, left + shorter, top + shorter))).astype(int)
    assert np.abs(np.asarray(fit(picture, shorter)).astype(int) - centre).max() == 0


def test_a_size_that_needs_more_memory_than_allowed_is_refused():
    with pytest.raises(ValueError, match=r"digits as 1797 images of 10000×10000 takes 179\.7 GB .* --data\.max_gb"):
        load_images("digits", 10_000)
    assert load_images("digits", 16).shape == (1, 16, 16)


def test_one_long_text_among_labels_costs_its_own_length():
    texts = np.empty(2000, dtype=object)
    texts[:] = ["cat", None] * 999 + ["x" * 200_000, b"cat"]
    tracemalloc.start()
    labels, names, notes = read_labels(texts, 2000, "t (caption)")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6
    assert names == ["cat", "x" * 200_000]
    assert labels[:2].tolist() == [0, -1]
    assert labels[-2:].tolist() == [1, 0]
    assert notes == ["without a label (−1 in t (caption)): 999 of 2000 images; the others keep theirs"]


@pytest.mark.parametrize("shape", ["-" * 9000 + "1", "(" * 9500, "(True, 8, 8)", "(8, {}, 8)", "9" * 5000])
def test_a_header_that_is_no_header_is_damage(tmp_path, shape):
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        content = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(64)
        archive.writestr("images.npy", content)
    with pytest.raises(ValueError, match=r"a\.npz cannot be read as an \.npz file: it is damaged"):
        Archive(tmp_path / "a.npz")


def test_the_name_of_a_picture_cannot_steer_a_terminal(tmp_path):
    bad = tmp_path / "a\x1b[2J.png"
    bad.write_bytes(b"no picture")
    for path in (bad, tmp_path / "none\x1b[2J.png"):
        with pytest.raises((ValueError, FileNotFoundError)) as caught:
            open_picture(path)
        assert "\x1b" not in str(caught.value)
        assert "�[2J.png" in str(caught.value)
    Image.new("L", (3, 4)).save(bad)
    with pytest.raises(ValueError, match="�") as caught:
        Frame.like(open_picture(bad), str(bad), None, False)
    assert "\x1b" not in str(caught.value)
