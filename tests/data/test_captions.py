"""Captions beside pictures: in a folder's list, in an .npz, in a table, made of class names."""

import json

import numpy as np
import pytest
from PIL import Image

from ctm.data import Images, load_images
from ctm.data.captions import load_captions, unique


def folder(place, names=("1.png", "2.png", "10.png")):
    for name in names:
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 4), 100, dtype=np.uint8)).save(place / name)
    return place


def captions(source, column=None):
    return load_captions(str(source), load_images(str(source)), column)


def test_a_folders_list_is_put_in_the_order_of_its_pictures(tmp_path, caplog):
    place = folder(tmp_path / "pictures")
    (place / "metadata.csv").write_text('file_name,text\n10.png,"a ten, said"\n1.png,a one\n', encoding="utf-8")
    assert captions(place) == ["a one", "", "a ten, said"]
    assert "1 of 3 pictures have no caption" in caplog.text
    (place / "metadata.csv").unlink()
    rows = [{"file_name": "2.png", "caption": "a two"}, {"file_name": "1.png", "caption": " a one "}]
    (place / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert captions(place) == ["a one", "a two", ""]
    assert captions(place, "caption") == captions(place)


def test_lists_as_spreadsheets_and_json_write_them(tmp_path):
    place = folder(tmp_path / "pictures", ("1.png",))
    (place / "metadata.csv").write_text("file_name,text\r\n1.png,é\r\n", encoding="utf-8-sig")
    assert captions(place) == ["é"]
    (place / "metadata.csv").unlink()
    (place / "metadata.jsonl").write_bytes('\ufeff{"file_name": "1.png", "text": "a\u2028b"}\r\n'.encode())
    assert captions(place) == ["a\u2028b"]


@pytest.mark.parametrize("kind", ["zip", "npy", "safetensors"])
def test_files_without_captions_are_said(tmp_path, kind):
    path = tmp_path / f"a.{kind}"
    path.write_bytes(b"")
    images = Images(np.zeros((1, 4, 4, 1), np.uint8), np.zeros(1, np.int64), ["cat"], str(path))
    with pytest.raises(ValueError, match="captions are not read from a file of that kind"):
        load_captions(str(path), images)
    assert load_captions(str(path), images, "a {}") == ["a cat"]


def test_pictures_in_folders_of_classes_are_named_with_their_folder(tmp_path):
    place = folder(tmp_path / "pictures", ("cats/1.png", "dogs/1.png"))
    (place / "metadata.csv").write_text("file_name,text\ndogs/1.png,a dog\ncats/1.png,a cat\n")
    assert captions(place) == ["a cat", "a dog"]
    assert captions(place, "a picture of {}") == ["a picture of cats", "a picture of dogs"]


def test_an_array_and_a_column_of_texts(tmp_path):
    pixels = np.zeros((3, 4, 4), dtype=np.uint8)
    pixels[1] = 9
    np.savez(tmp_path / "a.npz", images=pixels, caption=np.array(["one", "", "three"]), other=np.array(["x", "y", "z"]))
    assert captions(tmp_path / "a.npz") == ["one", "", "three"]
    assert captions(tmp_path / "a.npz", "other") == ["x", "y", "z"]
    import datasets

    rows = {"image": [Image.fromarray(p) for p in pixels], "text": ["one", None, "three"]}
    datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image()).to_parquet(tmp_path / "a.parquet")
    assert captions(tmp_path / "a.parquet") == ["one", "", "three"]


def test_each_text_is_known_once():
    texts, numbers = unique(["a", "", "b", "a"])
    assert (texts, numbers.tolist()) == (["a", "b"], [0, -1, 1, 0])


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("file_name,text\n3.png,a three\n", "names 3.png, which is no picture"),
        ("file_name,words\n1.png,a one\n", "has file_name, words, and its captions are looked for in text or caption"),
        ("file_name,text\n1.png,a\n1.png,b\n", "row 2 needs a file_name that is there once"),
        ("name,text\n1.png,a\n", "row 1 needs a file_name"),
        ('file_name,text\n1.png,"a\n', "is not readable as CSV"),
        ("file_name,text\n1.png,a\n2.png,b, c\n", "row 2 has more than the 2 columns file_name, text: .* in quotes"),
        ("file_name,text,text\n1.png,a,b\n", "has two columns text"),
        (None, "neither metadata.csv nor metadata.jsonl"),
    ],
    ids=["unknown", "column", "twice", "name", "quote", "comma", "columns", "none"],
)
def test_a_list_that_does_not_fit_is_refused_in_a_sentence(tmp_path, content, sentence):
    place = folder(tmp_path / "pictures")
    if content is not None:
        (place / "metadata.csv").write_text(content)
    with pytest.raises(ValueError, match=sentence):
        captions(place)


def test_arrays_that_are_no_texts_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", images=np.zeros((2, 4, 4), dtype=np.uint8), text=np.zeros((2, 3), dtype=np.float32))
    with pytest.raises(ValueError, match=r"captions must be texts \(N,\), got float32 2×3"):
        captions(tmp_path / "a.npz")
    with pytest.raises(ValueError, match="has no labels"):
        captions(tmp_path / "a.npz", "a {}")
