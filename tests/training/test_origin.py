"""A run knows what it was made from, and refuses to go on with something else."""

import json
import shutil

import numpy as np
import pytest
import torch

from ctm.cli import main
from ctm.models import load_model
from ctm.training.origin import model_digest

from .runs import everything, rows, student_arguments, teacher_arguments, trained

SHORT = ("--steps", "4", "--log_every", "1", "--checkpoint_every", "4")


def npz(path, seed=0, **others):
    generator = np.random.default_rng(seed)
    np.savez(path, images=generator.integers(0, 256, (20, 8, 8), dtype=np.uint8), labels=np.arange(20) % 10, **others)
    return path


def on(data, *extra):
    return ["--data.name", str(data), "--data.batch_size", "8", *extra]


@pytest.fixture(scope="module")
def made_once(tmp_path_factory):
    """A place with a teacher and a student of some pictures, each its run directory, and a copy of it."""
    place = tmp_path_factory.mktemp("origin") / "made"
    place.mkdir()
    data = npz(place / "set.npz")
    teacher = trained(place / "teacher", teacher_arguments(*SHORT, *on(data)))
    trained(place / "run", student_arguments(teacher, *SHORT, *on(data)))
    return place, shutil.copytree(place, place.with_name("kept"))


@pytest.fixture
def made(made_once):
    """The place as it was, at the path that its runs remember."""
    place, kept = made_once
    shutil.rmtree(place)
    return shutil.copytree(kept, place)


def again(made, *extra, teacher=None, data=None):
    return student_arguments(teacher or made / "teacher", *SHORT, *on(data or made / "set.npz"), *extra)


def test_made_of_json_says_what_the_run_is_made_from(made):
    kept = json.loads((made / "run" / "made_of.json").read_text())
    assert kept["data"]["name"] == str(made / "set.npz")
    assert (kept["data"]["images"], kept["data"]["classes"]) == (20, 10)
    assert kept["data"]["of"] == "pixels, labels and class names"
    assert kept["teacher"] == {
        "name": str(made / "teacher"),
        "digest": model_digest(load_model(made / "teacher")),
        "of": "weights and settings",
    }


def test_case_09_other_data_under_the_same_name_are_refused(made, capsys):
    npz(made / "set.npz", seed=1)
    assert main(["train", *again(made), "--out", str(made / "run")]) == 2
    said = capsys.readouterr().err
    assert (
        f"ctm: {made / 'run'} was made from something else than what is there now: changed since is the data (" in said
    )
    assert "teacher" not in said.split("Put back")[0].split("changed since")[1]
    assert (
        f"Put back what it was made from to go on, or start a new run: another --out, with --student {made / 'run'}"
        in said
    )


def test_case_09_another_teacher_under_the_same_name_is_refused(made, capsys):
    shutil.rmtree(made / "teacher")
    trained(made / "teacher", teacher_arguments(*SHORT, *on(made / "set.npz"), "--seed", "1"))
    assert main(["train", *again(made), "--out", str(made / "run")]) == 2
    assert f"changed since is the teacher ({made / 'teacher'}; digest " in capsys.readouterr().err


def test_case_09_both_are_named(made):
    npz(made / "set.npz", seed=1)
    shutil.rmtree(made / "teacher")
    trained(made / "teacher", teacher_arguments(*SHORT, *on(made / "set.npz"), "--seed", "1"))
    with pytest.raises(ValueError, match=r"changed since is the data \(.*\) and the teacher \("):
        trained(made / "run", again(made))


def test_data_and_teacher_at_another_place_are_the_same(made, capsys):
    """With other arrays in the file, too: the content that is trained on counts."""
    before = everything(made / "run")
    npz(made / "moved.npz", further=np.arange(3))
    (made / "set.npz").unlink()
    (made / "teacher").rename(made / "elsewhere")
    capsys.readouterr()
    trained(made / "run", again(made, teacher=made / "elsewhere", data=made / "moved.npz"))
    printed = capsys.readouterr().out
    assert f"data.name: {made / 'set.npz'} there, {made / 'moved.npz'} here" in printed
    assert f"teacher: {made / 'teacher'} there" in printed
    assert everything(made / "run") == before


def test_a_changed_starting_student_is_refused(made):
    arguments = again(made, "--student", str(made / "run"))
    trained(made / "second", arguments)
    shutil.rmtree(made / "run")
    trained(made / "run", again(made, "--seed", "1"))
    with pytest.raises(ValueError, match=r"changed since is the starting student \("):
        trained(made / "second", arguments)


def test_the_digest_of_a_model_sees_weights_and_settings_but_not_tuned_grids(made):
    model = load_model(made / "run")
    before = model_digest(model)
    config = made / "run" / "model" / "config.json"
    settings = json.loads(config.read_text())
    config.write_text(json.dumps(settings | {"noted": "later"}))
    assert model_digest(load_model(made / "run")) == before
    config.write_text(json.dumps(settings | {"sigma_data": 0.25}))
    assert model_digest(load_model(made / "run")) != before
    with torch.no_grad():
        model.network.last.bias[0] += 1e-7
    assert model_digest(model) != before


@pytest.mark.slow
def test_case_15_a_stopped_runs_log_is_that_of_an_unbroken_one(tmp_path, monkeypatch):
    """Checkpoints between two lines of the log: the means of the line after are over all its steps."""
    from ctm.training import trainer

    arguments = teacher_arguments("--steps", "23", "--log_every", "5", "--checkpoint_every", "7")
    whole = trained(tmp_path / "whole", arguments)
    take = trainer._step

    def broken(run, step):
        if step == 16:
            raise MemoryError("killed")
        return take(run, step)

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "_step", broken)
        with pytest.raises(MemoryError):
            trained(tmp_path / "parts", arguments)
    trained(tmp_path / "parts", arguments)
    assert [row["step"] for row in rows(tmp_path / "parts")] == [5, 10, 15, 20, 23]
    assert everything(tmp_path / "parts") == everything(whole)
