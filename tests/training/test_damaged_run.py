"""A run directory whose files say what no run writes: a sentence, before a step is taken."""

import json

import pytest
import torch

from ctm.cli import main
from ctm.training.guard import StepGuard
from ctm.training.origin import Origin, compare_origins, read_origin
from ctm.training.recording import _sums
from ctm.training.run_directory import RunDirectory

from .runs import teacher_arguments, trained


@pytest.mark.parametrize(
    "content",
    ["{}", '{"data": {"digest": "x"}}', '{"data": {"digest": "x", "of": 5}}', '{"data": 5}', "[]", '{"teacher": {}}'],
)
def test_a_damaged_origin_is_refused(tmp_path, content):
    (tmp_path / "made_of.json").write_text(content)
    with pytest.raises(ValueError, match=r"made_of\.json is damaged, so that it cannot be told"):
        read_origin(tmp_path)


def test_a_source_that_the_origin_lacks_is_said():
    about = {"digest": "x", "of": "pixels", "name": "d"}
    equal, lines = compare_origins(Origin({"data": about}), Origin({"data": about, "teacher": about}), "run")
    assert equal == {"data"}
    assert lines == ["run/made_of.json says nothing of the teacher: not compared"]


@pytest.mark.parametrize(
    "text",
    [
        "steps: null",
        "steps: [4]",
        "steps: .inf",
        "steps: abc",
        f"steps: {'9' * 400}",
        "seed: 1",
        "1: 2\nsteps: 3",
        "null: 2\nsteps: 3",
        "steps: 3\ndata: {1: 2}",
        "steps: 3\nobjectives: [{null: 2}]",
        "steps: true",
        "[1]",
    ],
)
def test_a_damaged_config_is_refused_by_its_name(tmp_path, text):
    directory = RunDirectory(tmp_path)
    directory.config.write_text(text)
    with pytest.raises(ValueError, match=r"config\.yaml is damaged: .*Restore it"):
        directory.settings()


def test_only_plain_numbers_are_checkpoints(tmp_path):
    directory = RunDirectory(tmp_path)
    for name in ("²", "٣", "00000004", "-1"):
        (directory.checkpoints / name).mkdir(parents=True)
    assert directory.steps() == [4]


@pytest.fixture
def kept(tmp_path):
    """A directory with a checkpoint of step 5, and the parts to load it into."""
    directory, module = RunDirectory(tmp_path / "run"), torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(module.parameters())
    directory.save(5, {"student": module}, {"student": optimizer}, {}, 1.5)
    return directory, {"student": module}, {"student": optimizer}


@pytest.mark.parametrize("state", ["[]", "{}", "5", "nonsense", '{"step": 5, "elapsed_seconds": 1, "extra": null}'])
def test_a_state_of_another_form_does_not_fit(kept, state):
    (kept[0].checkpoint(5) / "state.json").write_text(state)
    with pytest.raises(ValueError, match="does not fit this recipe"):
        kept[0].load(5, *kept[1:])


def test_weights_that_are_none_do_not_fit(kept):
    (kept[0].checkpoint(5) / "student.safetensors").write_bytes(b"\xff" * 99)
    with pytest.raises(ValueError, match="does not fit this recipe"):
        kept[0].load(5, *kept[1:])


@pytest.mark.parametrize(
    "saved", [{"state": {}, "param_groups": 5}, {"state": {}, "param_groups": [{"params": [0, 1]}]}, [], {"state": 5}]
)
def test_an_optimizer_of_another_form_does_not_fit(kept, saved):
    torch.save(saved, kept[0].checkpoint(5) / "student.optimizer.pt")
    with pytest.raises(ValueError, match="does not fit this recipe"):
        kept[0].load(5, *kept[1:])


def test_a_guard_takes_up_nothing_else():
    guard = StepGuard(3, None)
    good = guard.state_dict()
    guard.load_state_dict(good)
    for wrong in (
        {},
        {**good, "norms": 5},
        {**good, "norms": ["a"]},
        {**good, "skipped": "1"},
        {**good, "found": None},
    ):
        with pytest.raises((ValueError, KeyError, TypeError)):
            guard.load_state_dict(wrong)
    assert _sums({"loss": [1, 2]}) == {"loss": [1.0, 2.0]}


def test_a_continued_run_says_that_its_checkpoint_does_not_fit(capsys, tmp_path, monkeypatch):
    arguments = teacher_arguments(
        "--steps", "2", "--log_every", "2", "--sample_every", "50", "--sample_minutes", "null"
    )
    out = trained(tmp_path / "run", arguments)
    monkeypatch.setattr("ctm.training.run_directory.damage", lambda checkpoint: None)  # as of right checksums
    state = out / "checkpoints" / "00000002" / "state.json"
    whole = json.loads(state.read_text())
    for extra in (None, {}, {"guards": 5}, {**whole["extra"], "log": 5}, {**whole["extra"], "log": {"loss": "x"}}):
        state.write_text(json.dumps({**whole, "extra": extra}))
        assert main(["train", *arguments, "--out", str(out)]) == 2
        assert "does not fit this recipe" in capsys.readouterr().err
    state.write_text(json.dumps(whole))
    torch.save({"state": {}, "param_groups": 5}, next(state.parent.glob("*.optimizer.pt")))
    assert main(["train", *arguments, "--out", str(out)]) == 2
    assert "does not fit this recipe" in capsys.readouterr().err
