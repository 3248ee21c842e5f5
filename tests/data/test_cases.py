"""Data as users bring it: each test is a case that once failed, with what is right."""

import io
import logging
import os
import struct
import time
import tracemalloc
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image

from ctm.data import Images, load_images
from ctm.data.archive import Archive
from ctm.data.files import EXTENSIONS, open_picture
from ctm.data.notes import tell
from ctm.data.rowgroups import check_column, rows_at_once
from ctm.data.tree import find_pictures, natural

from .test_load import colour, grey, save


@pytest.fixture(autouse=True)
def _cache_beside_the_data(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("CTM_CACHE", str(tmp_path_factory.mktemp("cache")))


def npz(path, **arrays):
    np.savez(path, **arrays)
    return str(path)


def some(count=6, side=4):
    return np.random.default_rng(0).integers(0, 256, (count, side, side, 1), dtype=np.uint8)


def test_case_01_minus_one_is_no_label(tmp_path):
    images = load_images(npz(tmp_path / "x.npz", images=some(), labels=[0, 1, 2, 0, 1, -1]))
    assert images.labels.tolist() == [0, 1, 2, 0, 1, -1]
    assert images.num_classes == 3
    assert images.notes == (
        f"without a label (−1 in {tmp_path}/x.npz (labels)): 1 of 6 images; the others keep theirs",
    )
    assert images.batch(np.array([5, 2]))[1].tolist() == [-1, 2]
    without = load_images(npz(tmp_path / "y.npz", images=some(), labels=np.full(6, -1)))
    assert (without.labels, without.num_classes) == (None, 0)
    assert "no image has a label" in without.notes[0]
    with pytest.raises(ValueError, match=r"from 0 to 999999, or −1 for none, got -2: number the classes"):
        load_images(npz(tmp_path / "z.npz", images=some(), labels=[0, 1, 2, 0, 1, -2]))
    with pytest.raises(ValueError, match="got 1000000000"):
        load_images(npz(tmp_path / "w.npz", images=some(), labels=[0, 1, 2, 0, 1, 10**9]))


@pytest.mark.parametrize("name", ["label", "y", "target"])
def test_case_02_labels_of_another_name_are_said_and_can_be_named(tmp_path, name, caplog):
    file = npz(tmp_path / "x.npz", images=some(), extra=np.zeros((2, 2)), **{name: np.arange(6) % 3})
    images = load_images(file)
    assert images.labels is None
    line = f"used without labels; the file has {name}; --data.label {name} (--data_label in other commands than train) takes it"
    assert images.notes == (line, "not read: extra (float64 2×2)")
    assert [record.getMessage() for record in caplog.records] == [f"{file}: {note}" for note in images.notes]
    named = load_images(file, label=name)
    assert named.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert named.notes == ("not read: extra (float64 2×2)",)


def test_case_02_images_of_another_name_and_labels_that_are_texts(tmp_path):
    kinds = np.array(["dog", "cat", "", "cat", "dog10", "dog9"])
    file = npz(tmp_path / "x.npz", x_train=some(), kind=kinds)
    with pytest.raises(
        ValueError,
        match=r"holds the arrays x_train, kind: .* or named by --data.image \(--data_image in other commands than train\)",
    ):
        load_images(file)
    with pytest.raises(
        ValueError,
        match=r"--data.image x \(--data_image in other commands than train\): .* holds the arrays x_train, kind",
    ):
        load_images(file, image="x")
    images = load_images(file, image="x_train", label="kind")
    assert images.class_names == ["cat", "dog", "dog9", "dog10"]
    assert images.labels.tolist() == [1, 0, -1, 0, 3, 2]
    with pytest.raises(
        ValueError, match=r"--data.image .* and --data.label .* name arrays or columns of a file, and digits has none"
    ):
        load_images("digits", label="y")


def test_names_of_classes_in_an_npz(tmp_path):
    names = np.array(["Flags", "Food"])
    images = load_images(npz(tmp_path / "x.npz", images=some(2), labels=[1, 0], class_names=names))
    assert images.class_names == ["Flags", "Food"]
    assert images.notes == ()
    with pytest.raises(ValueError, match=r"class_names must be texts, one for each class 0 … 2"):
        load_images(npz(tmp_path / "y.npz", images=some(2), labels=[2, 0], class_names=names))


def parquet(path, columns, features=None):
    import datasets

    datasets.Dataset.from_dict(columns, features=features).to_parquet(path)
    return str(path)


def png(array):
    file = io.BytesIO()
    Image.fromarray(array).save(file, "png")
    return file.getvalue()


def test_case_02_columns_of_parquet(tmp_path):
    import datasets

    features = datasets.Features(
        {
            "img": datasets.Image(),
            "fine_label": datasets.Value("int64"),
            "caption": datasets.Value("string"),
            "score": datasets.Value("float32"),
        }
    )
    pictures = [Image.fromarray(grey(i, 6, 6)) for i in range(3)]
    columns = {"img": pictures, "fine_label": [2, 0, -1], "caption": ["b", "a", "b"], "score": [0.0, 1, 2]}
    file = parquet(tmp_path / "x.parquet", columns, features)
    images = load_images(file)
    assert images.labels is None
    assert (
        "the file has fine_label, caption; --data.label fine_label (--data_label in other commands than train) takes the first"
        in images.notes[0]
    )
    assert images.notes[1] == "columns not read: score"
    assert load_images(file, label="fine_label").labels.tolist() == [2, 0, -1]
    named = load_images(file, label="caption")
    assert (named.labels.tolist(), named.class_names) == ([1, 0, 1], ["a", "b"])
    with pytest.raises(
        ValueError,
        match=r"--data.label x \(--data_label in other commands than train\): .* has the columns img, fine_label, caption, score",
    ):
        load_images(file, label="x")
    with pytest.raises(ValueError, match="neither picture files nor arrays"):
        load_images(file, image="score")


def test_case_03_pictures_that_are_plain_bytes_structs_or_arrays_in_parquet(tmp_path):
    import datasets

    arrays = [colour(10 * i, 5, 5) for i in range(3)]
    shapes = {
        "bytes": ([png(a) for a in arrays], datasets.Value("binary")),
        "struct": ([{"bytes": png(a), "path": None} for a in arrays], None),
        "array": (arrays, datasets.Array3D((5, 5, 3), "uint8")),
        "lists": ([a.tolist() for a in arrays], None),
    }
    for kind, (values, feature) in shapes.items():
        features = None if feature is None else datasets.Features({"picture": feature})
        images = load_images(parquet(tmp_path / f"{kind}.parquet", {"picture": values}, features))
        assert np.array_equal(images.pixels, np.stack(arrays)), kind
    wrong = parquet(tmp_path / "wrong.parquet", {"image": [png(arrays[0]), b"no picture"]})
    with pytest.raises(ValueError, match=r"wrong.parquet: image 1 cannot be read as a picture"):
        load_images(wrong)
    with pytest.raises(ValueError, match="no column of images: its columns are number"):
        load_images(parquet(tmp_path / "none.parquet", {"number": [1, 2]}))
    other = parquet(tmp_path / "path.parquet", {"image": [{"bytes": None, "path": "/dev/zero"}]})
    with pytest.raises(
        ValueError, match=r"image 0 is not in the table, which names the file /dev/zero: it is not there"
    ):
        load_images(other)


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


def test_case_19_an_npz_that_inflates_is_refused_before_it_does(tmp_path):
    """2 GB of zeros, 2 MB as a file."""
    file = tmp_path / "bomb.npz"
    packed, header, zeros = zlib.compressobj(9, zlib.DEFLATED, -15), io.BytesIO(), bytes(10_000_000)
    about = {"descr": "|u1", "fortran_order": False, "shape": (2_000, 1_000, 1_000)}
    np.lib.format.write_array_header_1_0(header, about)
    start = packed.compress(header.getvalue()) + packed.flush(zlib.Z_FULL_FLUSH)
    again = packed.compress(zeros) + packed.flush(zlib.Z_FULL_FLUSH)  # a block that may stand as often as one likes
    content = start + 200 * again + packed.flush()
    size, name = len(header.getvalue()) + 200 * len(zeros), b"images.npy"
    common = struct.pack("<HHHHHIIIHH", 20, 0, 8, 0, 33, 0, len(content), size, len(name), 0)
    entry = b"PK\1\2" + struct.pack("<H", 20) + common + struct.pack("<HHHII", 0, 0, 0, 0, 0) + name
    local = b"PK\3\4" + common + name + content
    file.write_bytes(local + entry + b"PK\5\6" + struct.pack("<HHHHIIH", 0, 0, 1, 1, len(entry), len(local), 0))
    assert file.stat().st_size < 2.1e6
    tracemalloc.start()
    started = time.monotonic()
    with pytest.raises(
        ValueError,
        match=r"takes 2\.0 GB in memory, more than 1\.0 GB .* if you trust the file .* give --data.max_gb 2\.1 \(--data_max_gb",
    ):
        load_images(str(file))
    assert time.monotonic() - started < 5
    assert tracemalloc.get_traced_memory()[1] < 1e7
    tracemalloc.stop()


def test_case_19_the_limit_is_what_a_flag_says(tmp_path):
    file = npz(tmp_path / "x.npz", images=some(1000, 10))
    assert len(load_images(file, max_gb=1e-3)) == 1000
    with pytest.raises(ValueError, match=r"takes 0.0 GB in memory, more than 0.0 GB"):
        load_images(file, max_gb=1e-5)
    with pytest.raises(ValueError, match=r"data.max_gb must be above 0, got -1"):
        load_images(file, max_gb=-1)


def lying(path, header, content, *, size=None):
    """An .npz whose one part has this header."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("images.npy", header + content)
    return path


def test_headers_that_lie_are_refused(tmp_path):
    def head(shape, descr="|u1", version=b"\x01\x00", length=None):
        text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
        width = "<H" if version[0] == 1 else "<I"
        return b"\x93NUMPY" + version + struct.pack(width, len(text) if length is None else length) + text

    wrong = {
        "larger than the part": head("(10**9, 8, 8)".replace("10**9", "1000000000")),
        "negative": head("(-1, 8, 8)"),
        "long header": head("(1, 8, 8)", version=b"\x02\x00", length=4_000_000_000),
        "format 3": head("(1, 8, 8)", version=b"\x03\x00"),
        "no array": b"hello, this is text",
    }
    for words, header in wrong.items():
        with pytest.raises(
            ValueError, match=r"cannot be read as an .npz file: it is damaged, or no zip of plain arrays"
        ):
            Archive(lying(tmp_path / "x.npz", header, bytes(64)))
        assert words
    good = Archive(lying(tmp_path / "x.npz", head("(1, 8, 8)"), bytes(64)))
    assert good.read("images").shape == (1, 8, 8)


def test_object_arrays_are_not_read_but_named(tmp_path):
    things = np.array([{"a": 1}, None], dtype=object)
    images = load_images(npz(tmp_path / "x.npz", images=some(2), info=things))
    assert images.notes == ("not read: info (objects)",)
    with pytest.raises(ValueError, match="info holds Python objects, which are not read"):
        load_images(npz(tmp_path / "x.npz", images=some(2), info=things), label="info")


def test_parts_of_a_zip_that_overlap_are_refused(tmp_path):
    """Two names for the same bytes: the second entry of the directory points at the first's data."""
    file = tmp_path / "x.npz"
    np.savez(file, images=some(2), other=some(2))
    raw = bytearray(file.read_bytes())
    entries = [place for place in range(len(raw)) if raw[place : place + 4] == b"PK\x01\x02"]
    raw[entries[1] + 42 : entries[1] + 46] = raw[entries[0] + 42 : entries[0] + 46]
    file.write_bytes(raw)
    with pytest.raises(ValueError, match=r"cannot be read as an .npz file: .*overlap"):
        Archive(file)


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


def test_lines_come_from_the_first_process_only_and_cannot_steer_a_terminal(caplog, monkeypatch):
    with caplog.at_level(logging.WARNING):
        tell(["a \x1b[31mred\nline"], "set")
        monkeypatch.setenv("RANK", "1")
        tell(["of another process"])
    assert [record.getMessage() for record in caplog.records] == ["set: a �[31mred�line"]


def test_a_full_disk_is_a_sentence_before_anything_is_decoded(tmp_path, monkeypatch):
    from collections import namedtuple

    from ctm.data import folder

    save(tmp_path / "pictures" / "a.png", grey(1, 100, 100))
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(folder.shutil, "disk_usage", lambda path: usage(0, 0, 5000))
    with pytest.raises(
        ValueError, match=r"need 0\.00 GB in .*cache.*, where 0\.00 GB are free: make room, set CTM_CACHE"
    ):
        load_images(str(tmp_path / "pictures"))


def test_images_check_labels_and_names():
    with pytest.raises(ValueError, match="label 2 has no name: there are 2 names of classes"):
        Images(some(1), np.array([2]), ["a", "b"])
    with pytest.raises(ValueError, match="≥ 0, or −1 for none"):
        Images(some(1), np.array([-2]))
    moved = Images(some(3), np.array([0, -1, 1]), ["a", "b"]).renumbered(np.array([2, 0]), ["b", "c", "a"])
    assert moved.labels.tolist() == [2, -1, 0]
    assert moved.num_classes == 3


def repeated(path, size, rows, groups=1):
    """A parquet file of row groups in which one PNG with zeros behind it is stored once and stands in each row."""
    import pyarrow
    from pyarrow.parquet import ParquetWriter

    picture = pyarrow.array([png(grey(7, 4, 4)) + bytes(size)], pyarrow.binary())
    column = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * rows, pyarrow.int32()), picture)
    table = pyarrow.table({"image": column})
    options = {"compression": "zstd", "write_statistics": False, "store_schema": False}
    with ParquetWriter(path, table.schema, **options) as writer:
        for _ in range(groups):
            writer.write_table(table)
    return str(path)


def test_a_parquet_file_that_inflates_is_refused_on_its_headers(tmp_path):
    file = repeated(tmp_path / "x.parquet", 100_000, rows=1, groups=20)
    assert os.path.getsize(file) < 20_000
    assert len(load_images(file, max_gb=0.0021)) == 20
    with pytest.raises(ValueError, match=r"x.parquet \(image\) takes 0.0 GB in memory.*give --data.max_gb 0.0021 "):
        load_images(file, max_gb=0.0019)


def test_a_parquet_value_that_stands_in_many_rows_counts_in_each(tmp_path):
    file = repeated(tmp_path / "x.parquet", 100_000, rows=200)
    assert os.path.getsize(file) < 1000
    assert len(load_images(file, max_gb=0.021)) == 200
    with pytest.raises(ValueError, match=r"x.parquet \(image\) takes 0.0 GB in memory.*give --data.max_gb 0.021 "):
        load_images(file, max_gb=0.01)


def test_a_parquet_number_that_stands_in_many_rows_counts_in_each(tmp_path):
    import pyarrow
    from pyarrow import parquet as files

    files.write_table(pyarrow.table({"label": pyarrow.array([3] * 10_000)}), tmp_path / "x.parquet")
    header = files.ParquetFile(tmp_path / "x.parquet").metadata
    assert header.row_group(0).total_byte_size < 1000
    check_column("label", header, "label", 0, 81e-6)  # 10,000 numbers of 8 bytes
    with pytest.raises(ValueError, match=r"label takes 0\.0 GB"):
        check_column("label", header, "label", 0, 79e-6)


def test_few_rows_of_long_parquet_values_are_read_together(tmp_path):
    from pyarrow.parquet import ParquetFile

    long = repeated(tmp_path / "long.parquet", 30_000_000, rows=2)
    assert rows_at_once(ParquetFile(long).metadata, "image", 64) == 2
    short = repeated(tmp_path / "short.parquet", 1000, rows=2)
    assert rows_at_once(ParquetFile(short).metadata, "image", 64) == 64


def test_endings_of_data_count_in_any_case(tmp_path):
    assert len(load_images(npz(tmp_path / "x.npz", images=some()))) == 6
    (tmp_path / "x.npz").rename(tmp_path / "X.NPZ")
    assert len(load_images(str(tmp_path / "X.NPZ"))) == 6
    parquet(tmp_path / "y.parquet", {"image": [png(grey(7, 4, 4))]})
    (tmp_path / "y.parquet").rename(tmp_path / "Y.PARQUET")
    assert len(load_images(str(tmp_path / "Y.PARQUET"))) == 1
    with pytest.raises(FileNotFoundError, match=r"there is no file absent\.Parquet"):
        load_images("absent.Parquet")
