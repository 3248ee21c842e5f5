"""Classes of a run: names kept with the model, compared with the teacher's; random flips."""

import numpy as np
import pytest
import torch

from ctm import load_model
from ctm.data import Images, load_images, random_flips
from ctm.terminal.recipe_parser import parse_recipe
from ctm.training import train
from ctm.training.classes import in_classes_of

from .runs import RECIPES, SMALL, student_arguments, teacher_arguments, trained


class Named:
    def __init__(self, names, count=None):
        self.class_names, self.num_classes = names, count or len(names)


def images(labels, names):
    return Images(np.zeros((len(labels), 4, 4, 1), np.uint8), np.array(labels), names, "set")


def told(caplog):
    return [record.getMessage() for record in caplog.records]


def test_case_05_the_same_names_in_another_order_are_matched_and_said(caplog):
    moved = in_classes_of(Named(["b", "c", "a"]), "the teacher", images([0, 1, 2, -1], ["a", "b", "c"]))
    assert moved.labels.tolist() == [2, 0, 1, -1]
    assert moved.class_names == ["b", "c", "a"]
    assert told(caplog) == ["set: classes are matched with those of the teacher by name: a 0 → 2, b 1 → 0, c 2 → 1"]


def test_case_05_other_classes_are_refused_by_name():
    with pytest.raises(
        ValueError, match="set has the class d, which the teacher does not know: it knows 0 b, 1 c, 2 a"
    ):
        in_classes_of(Named(["b", "c", "a"]), "the teacher", images([0, 1], ["a", "d"]))
    with pytest.raises(ValueError, match=r"set lacks classes that the teacher knows: c. .* an empty folder"):
        in_classes_of(Named(["b", "c", "a"]), "the teacher", images([0, 1], ["a", "b"]))
    with pytest.raises(ValueError, match="numbers the classes otherwise than the teacher"):
        in_classes_of(Named(["b", "a"]), "the model to start from", images([0, 1], ["a", "b"]), settled=True)
    with pytest.raises(ValueError, match="a is the name of more than one, so they cannot be matched by name"):
        in_classes_of(Named(["b", "a", "a"]), "the teacher", images([0, 1, 1], ["a", "b"]))


def test_case_05_without_names_numbers_are_compared_and_a_line_says_so(caplog):
    data = images([0, 1], ["a", "b"])
    assert in_classes_of(Named([], 2), "the teacher", data) is data
    assert told(caplog) == [
        "set: no class names were compared, for the teacher keeps none: class numbers are taken as they are"
    ]
    with pytest.raises(ValueError, match="set has 2 classes, and the teacher knows only the numbers 0 … 0"):
        in_classes_of(Named([], 1), "the teacher", data)
    assert in_classes_of(Named([], 0), "the teacher", data) is data


def test_case_05_training_keeps_the_names_and_takes_the_teachers_order(tmp_path, caplog, capsys):
    digits = load_images("digits")
    letters = [chr(ord("a") + number) for number in range(10)]
    np.savez(tmp_path / "x.npz", images=digits.pixels[:64], labels=digits.labels[:64], class_names=letters)
    back = 9 - digits.labels[:64]
    np.savez(tmp_path / "y.npz", images=digits.pixels[:64], labels=back, class_names=letters[::-1])
    short = ["--steps", "2", "--data.name"]
    trained(tmp_path / "teacher", teacher_arguments(*short, str(tmp_path / "x.npz")))
    assert load_model(tmp_path / "teacher").class_names == letters
    assert capsys.readouterr().out.count("classes: 0 a, 1 b") == 1
    caplog.clear()
    runs = []
    for name in ("x", "y"):
        out = tmp_path / f"student-{name}"
        trained(out, student_arguments(tmp_path / "teacher", *short, str(tmp_path / f"{name}.npz")))
        runs.append(load_model(out))
    assert runs[1].class_names == letters
    matched = [line for line in told(caplog) if "matched" in line]
    assert len(matched) == 1
    assert matched[0].endswith(
        "by name: j 0 → 9, i 1 → 8, h 2 → 7, g 3 → 6, f 4 → 5, e 5 → 4, d 6 → 3, c 7 → 2, b 8 → 1, a 9 → 0"
    )
    states = [model.state_dict() for model in runs]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_case_01_a_run_on_data_of_which_some_have_no_label(tmp_path):
    digits = load_images("digits")
    labels = np.where(np.arange(64) % 4 == 0, -1, digits.labels[:64])
    np.savez(tmp_path / "x.npz", images=digits.pixels[:64], labels=labels)
    arguments = teacher_arguments("--steps", "2", "--data.name", str(tmp_path / "x.npz"))
    recipe, text = parse_recipe(arguments)
    train(recipe, tmp_path / "run", text)
    assert load_model(tmp_path / "run").num_classes == 10


def test_flips_come_from_seed_step_and_row_alone():
    flips = random_flips(1000, 3, 7)
    assert torch.equal(flips[:100], random_flips(1000, 3, 7)[:100])
    assert 400 < int(flips.sum()) < 600
    assert not torch.equal(flips, random_flips(1000, 3, 8))
    assert not torch.equal(flips, random_flips(1000, 4, 7))


def _weights(out, *extra):
    # without dropout and adaptive weights, so that pieces of a batch make the whole batch's step
    plain = ["--adaptive_balance", "false", "--steps", "3", *extra]
    recipe, text = parse_recipe(["--config", str(RECIPES / "digits-scratch.yaml"), *SMALL, *plain])
    train(recipe, out, text)
    return load_model(out).state_dict()


def test_flips_are_the_same_in_pieces_of_a_batch(tmp_path):
    plain = _weights(tmp_path / "plain")
    whole = _weights(tmp_path / "whole", "--data.flip", "true")
    pieces = _weights(tmp_path / "pieces", "--data.flip", "true", "--engine.accumulate", "2")
    assert any(not torch.equal(plain[name], whole[name]) for name in plain)
    for name in whole:
        torch.testing.assert_close(whole[name], pieces[name], rtol=1e-3, atol=1e-4)


def test_what_is_flipped_is_the_width(tmp_path, monkeypatch):
    """With every row flipped a run sees the mirrored pictures, and the same random numbers."""
    from ctm.training import input as batches

    digits = load_images("digits")
    mirrored = Images(np.ascontiguousarray(digits.pixels[:, :, ::-1]), digits.labels, digits.class_names, "digits")
    arguments = teacher_arguments("--steps", "2")
    train(*_of(arguments, tmp_path / "mirrored"), images=mirrored)
    monkeypatch.setattr(batches, "random_flips", lambda count, seed, step: torch.ones(count, dtype=torch.bool))
    train(*_of([*arguments, "--data.flip", "true"], tmp_path / "flipped"), images=digits)
    states = [load_model(tmp_path / name).state_dict() for name in ("mirrored", "flipped")]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def _of(arguments, out):
    recipe, text = parse_recipe(arguments)
    return recipe, out, text
