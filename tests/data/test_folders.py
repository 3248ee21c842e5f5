"""Folders of pictures as users bring them: each test is a case that once failed, with what is right."""

import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from ctm.data import load_images
from ctm.data.files import EXTENSIONS, open_picture
from ctm.data.tree import find_pictures, natural

from .test_load import colour, grey, save


@pytest.fixture(autouse=True)
def _cache_beside_the_data(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("CTM_CACHE", str(tmp_path_factory.mktemp("cache")))


def test_case_04_folders_in_natural_order_with_what_is_left_out(tmp_path):
    for name in ("1", "2", "10"):
        for number in (1, 2, 10):
            save(tmp_path / name / f"{number}.png", grey(int(name) + number))
    save(tmp_path / "2" / ".ipynb_checkpoints" / "1.png", grey(99))
    save(tmp_path / "2" / "deep" / "3.png", grey(50))
    save(tmp_path / "__MACOSX" / "1.png", grey(99))
    (tmp_path / "3").mkdir()
    (tmp_path / "1" / "x.heic").write_bytes(b"a")
    (tmp_path / "Thumbs.db").write_bytes(b"a")
    (tmp_path / "1" / "y.heic").write_bytes(b"a")
    (tmp_path / "1" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "10" / "loop").symlink_to(tmp_path / "10")
    (tmp_path / "up").symlink_to(tmp_path)
    (tmp_path / "1" / "a.png").symlink_to(tmp_path / "1" / "b.png")
    (tmp_path / "1" / "b.png").symlink_to(tmp_path / "1" / "a.png")
    images = load_images(str(tmp_path), size=8)
    assert images.class_names == ["1", "2", "3", "10"]
    assert images.labels.tolist() == [0] * 3 + [1] * 4 + [3] * 3
    assert images.num_classes == 4
    assert images.pixels[:, 0, 0, 0].tolist() == [2, 3, 11, 3, 4, 12, 50, 11, 12, 20]
    assert images.notes == (
        "6 files left out: broken links 3, .heic 2, .db 1",
        "hidden, so left out with the pictures in them: 2/.ipynb_checkpoints, __MACOSX",
        "links that lead back to a folder above them are left out: up, 10/loop",
        "1 class without pictures stays: 2 3",
        "pictures in folders below a class folder count to that class: 1, in 2/deep",
    )
    assert load_images(str(tmp_path), size=8).notes == images.notes  # read from the cache, said again


def test_case_04_avif_is_read_where_pillow_can_and_counted_elsewhere(tmp_path):
    save(tmp_path / "a.png", colour(10))
    if ".avif" in EXTENSIONS:
        Image.fromarray(colour(200)).save(tmp_path / "b.avif")
        assert len(load_images(str(tmp_path))) == 2
    else:
        (tmp_path / "b.avif").write_bytes(b"a")
        assert load_images(str(tmp_path)).notes == ("1 file left out: .avif 1",)


def test_natural_order():
    assert sorted(["b10", "b9", "a", "10", "2", "b"], key=natural) == ["2", "10", "a", "b", "b9", "b10"]


def test_folders_that_may_be_meant_otherwise(tmp_path):
    for name in ("train", "test"):
        save(tmp_path / "splits" / name / "cats" / "1.png", grey(1))
    assert "if these are parts of a set with folders of classes, give" in find_pictures(tmp_path / "splits").notes[-1]
    save(tmp_path / "one" / "cats" / "1.png", grey(1))
    assert "so there is one class, cats: without sub-folders there is none" in find_pictures(tmp_path / "one").notes[-1]
    save(tmp_path / "cases" / "Cats" / "1.png", grey(1))
    save(tmp_path / "cases" / "cats" / "1.png", grey(1))
    assert (
        "differ only in upper and lower case and are classes apart: Cats, cats"
        in find_pictures(tmp_path / "cases").notes[0]
    )
    save(tmp_path / "flat" / "1.png", grey(1))
    (tmp_path / "flat" / "notes").mkdir()
    assert find_pictures(tmp_path / "flat").notes == ("folders without pictures are left out: notes",)
    save(tmp_path / "linked" / "a" / "1.png", grey(1))
    (tmp_path / "linked" / "b").symlink_to(tmp_path / "linked" / "a")
    assert find_pictures(tmp_path / "linked").labels.tolist() == [0, 1]
    for form in ("\u00e9", "e\u0301"):
        (tmp_path / "forms" / form).mkdir(parents=True)
    save(tmp_path / "forms" / "\u00e9" / "1.png", grey(1))
    if len(os.listdir(tmp_path / "forms")) == 2:  # some file systems keep one form only
        with pytest.raises(ValueError, match="the same name in two encodings"):
            find_pictures(tmp_path / "forms")


def oriented(path, orientation, **options):
    """A picture 12×8 whose top left quarter is white, stored with an EXIF orientation."""
    pixels = np.zeros((8, 12), dtype=np.uint8)
    pixels[:4, :6] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(path, exif=exif, **options)
    return path


@pytest.mark.parametrize("ending", ["jpg", "png", "tif", "webp"])
def test_case_06_exif_orientation_is_applied(tmp_path, ending):
    """Orientation 6: to be turned a quarter clockwise, so that the white quarter comes to the top right."""
    options = {"tif": {"compression": "tiff_lzw"}, "png": {}}.get(ending, {"quality": 100})
    picture = open_picture(oriented(tmp_path / f"x.{ending}", 6, **options))
    seen = np.asarray(picture.image.convert("L")) > 128
    assert seen.shape == (12, 8)
    assert (seen[:6, 4:].mean(), seen[6:].mean(), seen[:6, :4].mean()) == (1, 0, 0)
    assert picture.traits == {"turned"}
    assert open_picture(oriented(tmp_path / f"y.{ending}", 1, **options)).traits == set()


def test_case_06_an_uncompressed_tiff_is_turned_over_or_refused(tmp_path):
    """Pillow 12 reads its rows with the wrong length where width and height change places."""
    upside_down = open_picture(oriented(tmp_path / "x.tif", 3))
    assert np.asarray(upside_down.image)[4:, 6:].min() == 255
    with pytest.raises(ValueError, match="an uncompressed TIFF that is to be turned by its orientation"):
        open_picture(oriented(tmp_path / "y.tif", 6))


def test_case_06_folders_turn_pictures_upright_and_say_so(tmp_path):
    oriented(tmp_path / "a.png", 6)
    save(tmp_path / "b.png", grey(9, 8, 8))
    images = load_images(str(tmp_path), size=8)
    assert images.notes == (
        "1 of 2 pictures is turned upright by its EXIF orientation",
        "1 of 2 pictures is not square: cropped to its centre",
    )
    assert images.pixels[0, 0, -1, 0] == 255


def test_case_06_floats_are_read_within_zero_and_one_else_refused(tmp_path):
    ramp = np.linspace(0, 1, 16, dtype=np.float32).reshape(4, 4)
    Image.fromarray(ramp).save(tmp_path / "a.tif")
    images = load_images(str(tmp_path))
    assert images.pixels.flatten().tolist() == [round(255 * i / 15) for i in range(16)]
    assert (
        images.notes == ("1 of 1 pictures is float within [0, 1]: read as 0 … 255",)
        or "floats within" in images.notes[0]
    )
    for wrong, words in ((ramp * 255, "from 0 to 255"), (ramp - 1, "from -1 to 0"), (ramp * np.nan, "from nan to nan")):
        Image.fromarray(wrong.astype(np.float32)).save(tmp_path / "a.tif")
        with pytest.raises(ValueError, match=rf"a\.tif holds floats {words}: only floats within \[0, 1\]"):
            load_images(str(tmp_path))
    Image.fromarray(np.full((4, 4), 70_000, dtype=np.int32)).save(tmp_path / "a.tif")
    with pytest.raises(
        ValueError, match="holds 32-bit numbers from 70000 to 70000, whose range the file does not tell"
    ):
        load_images(str(tmp_path))


def test_of_several_frames_the_first_is_taken_and_said(tmp_path):
    frames = [Image.fromarray(grey(value)) for value in (30, 200)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    images = load_images(str(tmp_path), size=8)
    assert images.pixels[0, 0, 0, 0] == 30
    assert images.notes == ("1 of 1 pictures holds several pictures (animated, or pages): the first is taken",)


def test_pictures_that_would_cost_too_much_or_run_something_are_refused(tmp_path, monkeypatch):
    head = b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sIIBBBBB", 13, b"IHDR", 60_000, 60_000, 8, 2, 0, 0, 0)
    bomb = head + struct.pack(">I", zlib.crc32(head[12:])) + struct.pack(">I4s", 0, b"IDAT") * 2
    (tmp_path / "bomb.png").write_bytes(bomb)
    with pytest.raises(ValueError, match=r"bomb\.png has more than 178,956,970 pixels: reduce or remove it"):
        open_picture(tmp_path / "bomb.png")
    save(tmp_path / "large.png", grey(1, 20, 20))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 300)
    with (
        pytest.warns(Image.DecompressionBombWarning),
        pytest.raises(ValueError, match=r"is 20×20, more than 300 pixels"),
    ):
        open_picture(tmp_path / "large.png")
    (tmp_path / "program.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n")
    with pytest.raises(
        ValueError, match=r"program\.png cannot be read as a picture \(no picture format that is read here\)"
    ):
        open_picture(tmp_path / "program.png")


def test_case_30_channels_are_colour_if_any_file_is(tmp_path):
    for index in range(5):
        save(tmp_path / f"{index}.png", colour(index))
    Image.merge("LA", [Image.fromarray(grey(100)), Image.fromarray(grey(255))]).save(tmp_path / "grey.png")
    Image.merge("LA", [Image.fromarray(grey(100)), Image.fromarray(grey(0))]).save(tmp_path / "clear.png")
    images = load_images(str(tmp_path), size=8)
    assert images.shape == (3, 8, 8)
    assert images.notes == (
        "2 of 7 pictures are grey: read as colour",
        "1 of 7 pictures has transparent parts: laid over white",
    )
    assert images.pixels[6].tolist() == np.full((8, 8, 3), 100).tolist()
    assert images.pixels[5].min() == 255
    assert load_images(str(tmp_path), size=8, channels=3).notes == images.notes[1:]


@pytest.mark.filterwarnings("error")
def test_palettes_with_transparency_are_read_in_silence(tmp_path):
    picture = Image.fromarray(np.dstack([colour(90), grey(255)])).convert("P")
    picture.save(tmp_path / "a.png", transparency=bytes([255] * 100 + [0] * 156))
    assert load_images(str(tmp_path), size=8).shape == (3, 8, 8)


def test_all_grey_with_alpha_stays_grey(tmp_path):
    Image.merge("LA", [Image.fromarray(grey(100)), Image.fromarray(grey(255))]).save(tmp_path / "grey.png")
    assert load_images(str(tmp_path), size=8).shape == (1, 8, 8)


def test_a_full_disk_is_a_sentence_before_anything_is_decoded(tmp_path, monkeypatch):
    from collections import namedtuple

    from ctm.data import decoded

    save(tmp_path / "pictures" / "a.png", grey(1, 100, 100))
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(decoded.shutil, "disk_usage", lambda path: usage(0, 0, 5000))
    with pytest.raises(
        ValueError, match=r"need 0\.00 GB in .*cache.*, where 0\.00 GB are free: make room, set CTM_CACHE"
    ):
        load_images(str(tmp_path / "pictures"))


def test_sixteen_bits_become_eight_and_it_is_said_once(tmp_path):
    Image.fromarray(np.full((4, 4), 257 * 100, dtype=np.uint16)).save(tmp_path / "a.png")
    Image.fromarray(np.full((4, 4), 257 * 100, dtype=np.uint16)).save(tmp_path / "b.tif")
    images = load_images(str(tmp_path))
    assert np.all(images.pixels == 100)
    assert images.notes == ("2 of 2 pictures have 16 bits: read as 8",)
    save(tmp_path / "a.png", grey(100, 4, 4))
    assert load_images(str(tmp_path)).notes == ("1 of 2 pictures has 16 bits: read as 8",)


def test_sixteen_bits_in_colour_are_said_too(tmp_path):
    """A PNG of 2×2 pixels with three channels of 16 bits, as no part of Pillow writes it."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = 2 * (b"\0" + 2 * struct.pack(">HHH", 257 * 10, 257 * 20, 257 * 30))
    header = struct.pack(">IIBBBBB", 2, 2, 16, 2, 0, 0, 0)
    content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + content)
    images = load_images(str(tmp_path))
    assert images.pixels[0, 1, 1].tolist() == [10, 20, 30]
    assert images.notes == ("1 of 1 pictures has 16 bits: read as 8",)
