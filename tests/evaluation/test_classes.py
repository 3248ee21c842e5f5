"""Classes of data and model in an evaluation: by name where both have names."""

import numpy as np
import pytest
import torch

from ctm.data import Images, load_images
from ctm.evaluation.classes import UNIFORM, Renumbered, shared_classes
from ctm.evaluation.frechet_measure import FrechetMeasure
from ctm.evaluation.run import judge_of, labels_of
from ctm.evaluation.sources import data_labels

from ..commands.test_cli import run, sentence

LETTERS = list("abcdefghij")


class Named:
    def __init__(self, names, count=None):
        self.class_names, self.num_classes = names, count or len(names)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _one_classifier_for_all(cache, monkeypatch):
    monkeypatch.setenv("CTM_CACHE", str(cache))


def digits(names):
    """240 digits, of which every fourth has no label."""
    images = load_images("digits")
    labels = np.where(np.arange(240) % 4 == 3, -1, images.labels[:240])
    return Images(images.pixels[:240], labels, names, "set")


def told(caplog):
    return [record.getMessage() for record in caplog.records]


def test_cases_01_and_05_labels_are_drawn_by_name_and_none_is_none(quick_classifier):
    data = digits(LETTERS)
    judge = judge_of(data, features="classifier", images=50, rows=20)
    model = Named([*LETTERS[::-1], "k"])
    labels = labels_of(judge, model, 0)
    drawn = data_labels(data, 50, 0)
    assert ["" if label < 0 else model.class_names[label] for label in labels] == [
        "" if label < 0 else LETTERS[label] for label in drawn
    ]
    assert 5 < int((labels == -1).sum()) < 25  # as often as in the data
    assert judge.reference.accuracy > 0.95  # of those that have a label: the others count neither way
    assert int(judge.reference.classes.count.sum()) == 180
    shared = shared_classes(data, model)
    assert shared.to_data.tolist() == [9, 8, 7, 6, 5, 4, 3, 2, 1, 0, -1]

    class Source:
        count = 3

        def batch(self, indices):
            return torch.zeros(3), torch.tensor([10, 9, -1])

    assert Renumbered(Source(), shared.to_data).batch(np.arange(3))[1].tolist() == [-1, 0, -1]


def test_case_05_unlike_classes_are_refused_or_left_out_with_a_line(caplog):
    data = digits(LETTERS)
    with pytest.raises(
        ValueError, match=r"set has the classes i, j, which the model does not know: .*--labels uniform"
    ):
        shared_classes(data, Named(LETTERS[:8]), strict=True, remedy=UNIFORM)
    assert shared_classes(data, Named(LETTERS[:8])) is None
    assert shared_classes(digits([]), Named(LETTERS[:8])) is None
    assert shared_classes(digits([]), Named(LETTERS)).same
    assert [line.partition(", which")[0] for line in told(caplog)] == [
        "labels are not compared: set has the classes i, j",
        "set: labels are not compared: the data have 10 classes and the model 8, without names",
        "set: no class names were compared, for the data have none: class numbers are taken as they are",
    ]
    tuned = Named(LETTERS[:8])
    tuned.shape = data.shape
    with pytest.raises(ValueError, match=r"set has the classes i, j, which the model does not know"):
        FrechetMeasure(tuned, data, features="classifier")
    assert shared_classes(data, Named([], 0)) is None
    assert len(told(caplog)) == 3


def test_case_05_the_commands_match_by_name_and_say_so(capsys, small_ctm, tmp_path, caplog):
    pixels, labels = digits(LETTERS).pixels, digits(LETTERS).labels
    np.savez(tmp_path / "x.npz", images=pixels, labels=labels, class_names=LETTERS)
    np.savez(tmp_path / "other.npz", images=pixels, labels=labels, class_names=[*LETTERS[:9], "Flags"])
    small_ctm.class_names = LETTERS[::-1]
    small_ctm.save_pretrained(tmp_path / "model")
    likelihood = ["likelihood", tmp_path / "model", "--num", 2, "--rtol", "1e-1", "--atol", "1e-1", "--data"]
    evaluate = [
        "evaluate",
        tmp_path / "model",
        "--features",
        "classifier",
        "--num",
        50,
        "--out",
        tmp_path / "out",
        "--data",
    ]
    for command in (likelihood, evaluate):
        caplog.clear()
        code, _, err = run(capsys, *command, tmp_path / "x.npz")
        assert code == 0, err
        lines = [line for line in told(caplog) if "matched with those of the model by name: a 0 → 9, b 1 → 8" in line]
        assert len(lines) == 1
        message = sentence(capsys, *command, tmp_path / "other.npz")
        assert "other.npz has the class Flags, which the model does not know: it knows 0 j, 1 i" in message
    assert run(capsys, *likelihood, tmp_path / "other.npz", "--labels", "none")[0] == 0
    assert run(capsys, *likelihood, tmp_path / "other.npz", "--labels", "c")[0] == 0


def test_case_02_the_commands_take_the_names_of_arrays(capsys, small_ctm, tmp_path):
    images = load_images("digits")
    np.savez(tmp_path / "x.npz", pictures=images.pixels[:100], y=images.labels[:100])
    small_ctm.save_pretrained(tmp_path / "model")
    named = ["--data", tmp_path / "x.npz", "--data_image", "pictures", "--data_label", "y"]
    code, printed, err = run(
        capsys, "likelihood", tmp_path / "model", *named, "--num", 2, "--rtol", "1e-1", "--atol", "1e-1"
    )
    assert code == 0, err
    assert "2 of 100 images, drawn with seed 0, with their classes" in printed
    over = sentence(capsys, "likelihood", tmp_path / "model", *named, "--data_max_gb", "1e-6")
    assert "give --data.max_gb" in over


def test_case_22_likelihood_asks_of_a_draw_over_all_classes(capsys, small_ctm, tmp_path):
    """A set sorted by class: of 16 images the first would be of one class."""
    import json

    images = load_images("digits")
    order = np.argsort(images.labels, kind="stable")
    np.savez(tmp_path / "x.npz", images=images.pixels[order], labels=images.labels[order])
    small_ctm.save_pretrained(tmp_path / "model")
    common = ["likelihood", tmp_path / "model", "--data", tmp_path / "x.npz", "--rtol", "1e-1", "--atol", "1e-1"]
    draws = []
    for seed in (0, 0, 1):
        out = tmp_path / "bits.json"
        assert run(capsys, *common, "--num", 16, "--seed", seed, "--out", out)[0] == 0
        draws.append(json.loads(out.read_text())["drawn"])
    assert draws[0] == draws[1] != draws[2]
    assert len({int(images.labels[order][index]) for index in draws[0]}) >= 6
