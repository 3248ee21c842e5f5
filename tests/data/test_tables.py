"""Arrays and tables as users bring them: each test is a case that once failed, with what is right."""

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
from ctm.data.notes import tell
from ctm.data.rowgroups import check_column, rows_at_once

from .test_load import colour, grey


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


def test_lines_come_from_the_first_process_only_and_cannot_steer_a_terminal(caplog, monkeypatch):
    with caplog.at_level(logging.WARNING):
        tell(["a \x1b[31mred\nline"], "set")
        monkeypatch.setenv("RANK", "1")
        tell(["of another process"])
    assert [record.getMessage() for record in caplog.records] == ["set: a �[31mred�line"]


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
