"""Data made to cost memory, or to break what reads it: refused in a sentence, or read at its own price."""

import io
import time
import tracemalloc
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image

from ctm.data import load_images
from ctm.data.archive import Archive
from ctm.data.classes import read_labels
from ctm.data.files import open_picture
from ctm.data.resize import fit
from ctm.data.stack import Frame
from ctm.foreign.text import parse_json


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
    with pytest.raises(
        ValueError, match=r"digits as 1797 images 10000 high and 10000 wide takes 179\.7 GB .* --data\.max_gb"
    ):
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


def picture() -> bytes:
    file = io.BytesIO()
    Image.new("L", (8, 8), 7).save(file, "png")
    return file.getvalue()


def peak_of(raises: str, read) -> int:
    """Bytes that were taken until the sentence came."""
    tracemalloc.start()
    with pytest.raises(ValueError, match=raises):
        read()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


@pytest.mark.parametrize(
    ("method", "said"),
    [
        (zipfile.ZIP_BZIP2, "by another method than deflate"),
        (zipfile.ZIP_DEFLATED, "more than a picture of its size needs"),
    ],
)
def test_a_picture_of_a_zip_has_the_bytes_of_its_size(tmp_path, monkeypatch, method, said):
    monkeypatch.setenv("CTM_CACHE", str(tmp_path / "cache"))
    with zipfile.ZipFile(tmp_path / "a.zip", "w", method) as archive:
        archive.writestr("0.png", picture() + bytes(20_000_000))
    assert peak_of(said, lambda: load_images(str(tmp_path / "a.zip"))) < 5e6


def test_a_picture_that_packs_well_is_read(tmp_path, monkeypatch):
    """A plain .bmp of 3 MB in 3 kB."""
    monkeypatch.setenv("CTM_CACHE", str(tmp_path / "cache"))
    file = io.BytesIO()
    Image.new("RGB", (1000, 1000), (9, 8, 7)).save(file, "bmp")
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("0.bmp", file.getvalue())
    assert load_images(str(tmp_path / "a.zip"), 8).pixels[0, 3, 3].tolist() == [9, 8, 7]


def test_pictures_that_inflate_far_together_are_refused_by_their_headers(tmp_path):
    inner = bytes(1_000_000)
    packed = zlib.compressobj(wbits=-15)
    content = packed.compress(inner) + packed.flush()
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for index in range(1_100):
            archive.writestr(f"{index}.png", content)
    raw = bytearray((tmp_path / "a.zip").read_bytes())
    for mark, method, sizes in ((b"PK\x03\x04", 8, 22), (b"PK\x01\x02", 10, 24)):  # as if each had been packed here
        start = raw.find(mark)
        while start >= 0:
            raw[start + method] = 8
            raw[start + sizes : start + sizes + 4] = len(inner).to_bytes(4, "little")
            start = raw.find(mark, start + 4)
    (tmp_path / "a.zip").write_bytes(raw)
    assert peak_of("would inflate to 1.1 GB of picture files from", lambda: load_images(str(tmp_path / "a.zip"))) < 5e6


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ('{"labels":[' + '["",1],' * 300_000 + '["",1]]}', "more than the .* that labels of 1 pictures take"),
        ("[" * 2_000_000, "more than the .* that labels of 1 pictures take"),
        ("[" * 60_000, "nested deeper than 50"),
    ],
    ids=["long", "deep and long", "deep"],
)
def test_the_labels_of_a_zip_are_in_proportion_to_it(tmp_path, labels, said):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("0.png", picture())
        archive.writestr("dataset.json", labels)
    assert peak_of(said, lambda: load_images(str(tmp_path / "a.zip"))) < 1e6


def test_depth_is_seen_before_anything_is_made():
    """300,000 lists 60 deep, which took thirty times the text."""
    text = "[" + ",".join(["[" * 60 + "]" * 60] * 5_000) + "]"
    assert peak_of("a is not readable as JSON: it is nested deeper than 50", lambda: parse_json(text, "a")) < 1e6
    fine = '{"a": ["[[[[", "\\\\", "\\"[{", ' + "[" * 47 + "]" * 47 + "]}"
    assert parse_json(fine, "a")["a"][:3] == ["[[[[", "\\", '"[{']
    assert parse_json("[" + ",".join(["[[]]"] * 100) + "]", "a") == [[[]]] * 100
