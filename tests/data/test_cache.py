"""Pictures decoded into the cache: from folders and EDM's zips; killed builds, damaged zips, a cache that cannot be written."""

import io
import json
import os
import socket
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from PIL import Image

from ctm.cli import main
from ctm.data import decoded, load_images

RANDOM = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("CTM_CACHE", str(tmp_path_factory.mktemp("cache") / "deep"))


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


def edm_zip(path, pixels, labels, name=lambda i: f"{i // 1000:05d}/img{i:08d}.png"):
    """A zip as EDM's dataset_tool.py makes it: stored, with the labels in dataset.json."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for index, each in enumerate(pixels):
            archive.writestr(name(index), png(each))
        rows = None if labels is None else [[name(index), int(label)] for index, label in enumerate(labels)]
        archive.writestr("dataset.json", json.dumps({"labels": rows}))
    return str(path)


@pytest.mark.parametrize("count", [1, 7, 2500])
def test_a_zip_gives_its_pixels_and_labels(tmp_path, count):
    """2,500 are more than are decoded together."""
    pixels = RANDOM.integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    labels = RANDOM.integers(0, 5, count)
    found = load_images(edm_zip(tmp_path / "a.zip", pixels, labels))
    np.testing.assert_array_equal(found.pixels, pixels)
    np.testing.assert_array_equal(found.labels, labels)
    assert isinstance(found.pixels, np.memmap)
    assert load_images(edm_zip(tmp_path / "b.zip", pixels, None)).labels is None


def test_a_zip_is_the_same_as_its_folder(tmp_path):
    pixels = RANDOM.integers(0, 256, (5, 9, 7, 3), dtype=np.uint8)
    path = edm_zip(tmp_path / "a.zip", pixels, None)
    with zipfile.ZipFile(path) as archive:
        archive.extractall(tmp_path / "folder")
    (tmp_path / "folder" / "dataset.json").unlink()
    np.testing.assert_array_equal(load_images(path, 6).pixels, load_images(str(tmp_path / "folder"), 6).pixels)


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ([["x.png", 1]], "has no label for any picture"),
        ([["x.png", -1]], "numbers from 0 to 999999"),
        ([["x.png", True]], "numbers from 0 to 999999"),
        ([["x.png", [0, 1]]], "numbers from 0 to 999999"),
        ({"x.png": 1}, "numbers from 0 to 999999"),
    ],
    ids=["others", "negative", "true", "vector", "mapping"],
)
def test_labels_of_another_form_are_refused(tmp_path, labels, said):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.png", png(np.zeros((4, 4), np.uint8)))
        archive.writestr("dataset.json", json.dumps({"labels": labels}))
    with pytest.raises(ValueError, match=said):
        load_images(str(tmp_path / "a.zip"))


def test_labels_that_name_no_picture_are_said_and_a_file_twice_is_refused(tmp_path):
    for name, more in (("gone", [["gone/x.png", 5]]), ("twice", [["0.png", 1]])):
        with zipfile.ZipFile(tmp_path / f"{name}.zip", "w") as archive:
            archive.writestr("0.png", png(np.zeros((4, 4), np.uint8)))
            archive.writestr("dataset.json", json.dumps({"labels": [["0.png", 1], *more]}))
    found = load_images(str(tmp_path / "gone.zip"))
    assert found.labels.tolist() == [1]
    assert "left out: 1 labels in dataset.json of what is no picture here, the first gone/x.png" in found.notes
    with pytest.raises(ValueError, match=r"gives a label to 0\.png twice"):
        load_images(str(tmp_path / "twice.zip"))


def test_hidden_files_are_left_out_of_zips_as_of_folders(tmp_path):
    pixels = RANDOM.integers(0, 256, (12, 4, 4, 3), dtype=np.uint8)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for index, each in enumerate(pixels):
            archive.writestr("0" * (index == 7) + f"{index}" * (1 + 4999 * (index == 1)) + ".png", png(each))
        for name in ("__MACOSX/._3.png", ".trash/3.png", "deep/._4.png"):
            archive.writestr(name, b"\0\5\x16\7")
        archive.writestr("train/dataset.json", "{}")
    found = load_images(str(tmp_path / "a.zip"))
    order = [0, *range(2, 12), 1]  # the second has a name of 5,000 digits, the largest number
    np.testing.assert_array_equal(found.pixels, pixels[order])
    assert "hidden, so left out with the pictures in them: .trash, __MACOSX, deep/._4.png" in found.notes
    assert any("it has no dataset.json at its top; train/dataset.json is not read" in note for note in found.notes)


@pytest.mark.parametrize("share", [0.1, 0.6, 0.98])
def test_a_zip_cut_short_is_refused(tmp_path, share):
    path = tmp_path / "a.zip"
    edm_zip(path, RANDOM.integers(0, 256, (20, 4, 4, 3), dtype=np.uint8), None)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(ValueError, match="cannot be read as a zip of pictures: it is damaged"):
        load_images(str(path))


def test_a_zip_with_a_flipped_bit_is_refused_and_nothing_is_cached(tmp_path):
    path = tmp_path / "a.zip"
    edm_zip(path, RANDOM.integers(0, 256, (20, 8, 8, 3), dtype=np.uint8), None)
    content = bytearray(path.read_bytes())
    content[1500] ^= 4
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"damaged|cannot be read as a picture"):
        load_images(str(path))
    assert not list(decoded.cache_directory().glob("folder-*"))


def test_a_build_that_was_killed_is_removed_and_one_that_runs_stays(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    path = edm_zip(tmp_path / "a.zip", RANDOM.integers(0, 256, (3, 4, 4, 3), dtype=np.uint8), None)
    stem = f"folder-{decoded._key(_members(path), None, None)}"
    cache = decoded.cache_directory()
    cache.mkdir(parents=True)
    names = [f"{stem}.{socket.gethostname()}-{number}.partial.npy" for number in (ended.pid, os.getppid())]
    for name in names:
        (cache / name).write_bytes(b"half")
    load_images(path)
    assert sorted(file.name for file in cache.iterdir()) == sorted([f"{stem}.json", f"{stem}.npy", names[1]])


@pytest.mark.parametrize(
    "kept", ["", "{}x", "[]", '{"cropped": "x"}', None], ids=["empty", "rest", "list", "text", "cut"]
)
def test_a_damaged_cache_is_decoded_again_and_said(tmp_path, caplog, kept):
    """As a power cut leaves it."""
    pixels = RANDOM.integers(0, 256, (3, 4, 4, 3), dtype=np.uint8)
    path = edm_zip(tmp_path / "a.zip", pixels, None)
    load_images(path)
    (array,), (traits,) = (list(decoded.cache_directory().glob(f"folder-*.{kind}")) for kind in ("npy", "json"))
    if kept is None:
        os.truncate(array, 200)
    else:
        traits.write_text(kept)
    caplog.clear()
    np.testing.assert_array_equal(load_images(path).pixels, pixels)
    assert f"the decoded pictures in {array} are damaged: decoded again" in caplog.text
    caplog.clear()
    load_images(path)
    assert "are damaged" not in caplog.text


def test_a_cache_that_is_cut_while_it_is_read_is_named(tmp_path):
    found = load_images(edm_zip(tmp_path / "a.zip", RANDOM.integers(0, 256, (3, 4, 4, 3), dtype=np.uint8), None))
    [array] = decoded.cache_directory().glob("folder-*.npy")
    os.truncate(array, 200)
    with pytest.raises(ValueError, match=f"{array.name} was cut while it was being read from"):
        found.batch(np.arange(3))


def _members(path):
    from pathlib import Path

    from ctm.data.zipped import _Members

    return _Members(Path(path))


def test_a_cache_that_cannot_be_written_is_a_sentence(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("no directory")
    monkeypatch.setenv("CTM_CACHE", str(tmp_path / "file" / "cache"))
    path = edm_zip(tmp_path / "a.zip", RANDOM.integers(0, 256, (3, 8, 8, 1), dtype=np.uint8)[..., 0], [0, 1, 0])
    recipe = "recipes/digits-teacher.yaml"
    assert main(["train", "--config", recipe, "--data.name", path, "--steps", "1", "--out", str(tmp_path / "run")]) == 2
    assert "the environment variable CTM_CACHE names the cache" in capsys.readouterr().err


def test_the_key_of_a_folder_is_what_it_was(tmp_path):
    """So that folders decoded by an earlier version are not decoded again."""
    import hashlib

    (tmp_path / "p").mkdir()
    for name in ("b.png", "a.png"):
        (tmp_path / "p" / name).write_bytes(png(np.zeros((4, 4), np.uint8)))
    files = [tmp_path / "p" / name for name in ("a.png", "b.png")]
    state = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    whole = json.dumps([4, 8, None, str((tmp_path / "p").resolve()), state])
    load_images(str(tmp_path / "p"), 8)
    key = hashlib.sha256(whole.encode()).hexdigest()[:32]
    assert (decoded.cache_directory() / f"folder-{key}.npy").is_file()
