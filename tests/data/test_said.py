"""What a set's name, split and labels could have meant otherwise is used, said in a line, or refused with file and field."""

import numpy as np
import pytest
from PIL import Image

from ctm.data import load_images
from ctm.data.classes import listed_classes, read_labels

PIXELS = np.arange(3 * 64, dtype=np.uint8).reshape(3, 8, 8)


def npz(tmp_path, **arrays):
    np.savez(tmp_path / "set.npz", images=PIXELS, **arrays)
    return str(tmp_path / "set.npz")


def parquet(tmp_path, column, features=None):
    import datasets

    pictures = [Image.fromarray(pixels) for pixels in PIXELS]
    known = datasets.Features({"image": datasets.Image(), "label": features}) if features else None
    datasets.Dataset.from_dict({"image": pictures, "label": column}, features=known).to_parquet(tmp_path / "x.parquet")
    return str(tmp_path / "x.parquet")


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_what_is_called_like_a_shipped_set_is_told_how_to_be_named(tmp_path, monkeypatch, caplog, kind):
    monkeypatch.chdir(tmp_path)
    if kind == "file":
        (tmp_path / "digits").write_text("")
    else:
        (tmp_path / "digits").mkdir()
        Image.fromarray(PIXELS[0]).save(tmp_path / "digits" / "a.png")
    assert len(load_images("digits")) == 1797
    assert "digits: this is the set of that name; what is called digits in this directory is ./digits" in caplog.text
    caplog.clear()
    if kind == "folder":
        assert len(load_images("./digits")) == 1
        assert "set of that name" not in caplog.text


def test_a_split_that_the_set_lacks_is_said_or_refused(tmp_path, caplog):
    load_images("digits", split="test")
    assert "digits: it has no splits, so that split test is all of it" in caplog.text
    with pytest.raises(ValueError, match=r"--data.split validation .*: fashion-mnist has train and test"):
        load_images("fashion-mnist", split="validation")
    caplog.clear()
    caplog.clear()
    load_images("digits")
    assert caplog.text == ""
    load_images("digits", split="train")
    assert "digits: it has no splits, so that split train is all of it" in caplog.text
    load_images(npz(tmp_path), split="test")
    assert "set.npz: it has no splits" in caplog.text
    caplog.clear()
    load_images("digits")
    assert caplog.text == ""


@pytest.mark.parametrize("value", [-1, 0, float("nan")])
def test_a_limit_of_memory_is_checked_also_where_nothing_asks_for_much(value):
    with pytest.raises(ValueError, match=r"data.max_gb must be above 0, got"):
        load_images("digits", max_gb=value)


def test_float_labels_that_are_whole_are_used_and_nan_is_none(tmp_path, caplog):
    images = load_images(npz(tmp_path, labels=np.array([1.0, np.nan, 0.0])))
    assert images.labels.tolist() == [1, -1, 0]
    assert "without a label (−1 in " in caplog.text
    table = load_images(parquet(tmp_path, [2.0, None, 0.0]))
    assert table.labels.tolist() == [2, -1, 0]


@pytest.mark.parametrize("wrong", [0.5, np.inf, 1e300])
def test_float_labels_that_are_not_whole_are_refused_with_file_and_field(tmp_path, wrong):
    with pytest.raises(ValueError, match=r"set.npz \(labels\): labels must be whole numbers.*that of image 2 is"):
        load_images(npz(tmp_path, labels=np.array([0.0, 1.0, wrong])))
    with pytest.raises(ValueError, match=r"x.parquet \(label\): labels must be whole numbers.*that of image 2 is"):
        load_images(parquet(tmp_path, [0.0, 1.0, wrong]))


def test_a_label_of_5000_characters_is_a_class_and_its_beginning_is_shown(tmp_path):
    images = load_images(parquet(tmp_path, ["a", "b" * 5000, "c"]))
    assert images.class_names == ["a", "b" * 5000, "c"]
    assert listed_classes(images.class_names) == f"0 a, 1 {'b' * 80}…, 2 c"


def test_a_class_number_beyond_the_columns_names_is_refused(tmp_path):
    import datasets
    import pyarrow.parquet

    path = parquet(tmp_path, [0, 1, 1], datasets.ClassLabel(names=["a", "b"]))
    assert load_images(path).class_names == ["a", "b"]
    table = pyarrow.parquet.read_table(path)
    beyond = table.set_column(1, table.schema.field("label"), pyarrow.array([0, 7, 1], type=pyarrow.int64()))
    pyarrow.parquet.write_table(beyond, path)
    with pytest.raises(ValueError, match=r"x.parquet \(label\): image 1 has the class number 7.* only 0 … 1"):
        load_images(path)


def test_bytes_are_texts_or_refused(tmp_path):
    images = load_images(npz(tmp_path, labels=np.array([0, 1, 0]), class_names=np.array([b"cat", "für".encode()])))
    assert images.class_names == ["cat", "für"]
    with pytest.raises(ValueError, match=r"set.npz: class_names\[1\] is no text in UTF-8"):
        load_images(npz(tmp_path, labels=np.array([0, 1, 0]), class_names=np.array([b"cat", b"\xff"])))
    with pytest.raises(ValueError, match=r"set.npz \(labels\): the label of image 2 is no text in UTF-8"):
        load_images(npz(tmp_path, labels=np.array([b"a", b"b", b"\xff\xfe"])))


@pytest.mark.parametrize("column", [[[0], [1, 2], [3]], [[0, 1], [1, 2], [3, 4]], [[0], None, [1]]])
def test_lists_as_labels_are_refused_with_file_and_field(tmp_path, column):
    with pytest.raises(ValueError, match=r"x.parquet \(label\): the label of image 0 is a list: labels are one whole"):
        load_images(parquet(tmp_path, column))


def test_lists_and_texts_together_are_refused():
    values = np.empty(2, dtype=object)
    values[:] = ["a", [1, 2]]
    with pytest.raises(ValueError, match=r"f \(y\): the label of image 1 is a list"):
        read_labels(values, 2, "f (y)")
