import json
import math
import re
import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from ctm.training import TrainingDiverged, assembly, trainer
from ctm.training.guard import StepGuard, check_weights
from ctm.training.players import PlayerInTraining

from .runs import (
    assert_same,
    checkpoint_steps,
    everything,
    rows,
    student_arguments,
    teacher_arguments,
    trained,
    weights,
)


class FailingTeacher(torch.nn.Module):
    """A teacher whose answers in some steps are nan; each step asks it 2k times."""

    def __init__(self, teacher, bad_steps):
        super().__init__()
        self.inner, self.bad_steps, self.step = teacher, bad_steps, -1
        self.network = teacher.network
        for name in ("shape", "num_classes", "sigma_min", "sigma_max", "sigma_data"):
            setattr(self, name, getattr(teacher, name))

    def denoise(self, x, t, labels=None):
        answer = self.inner.denoise(x, t, labels)
        return answer * math.nan if self.step in self.bad_steps else answer


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("teacher") / "teacher", teacher_arguments("--steps", "3"))


def fail_in(monkeypatch, *steps):
    """Let the teacher of runs from now on fail in these steps (from 1)."""
    load, take = assembly.load_teacher, trainer._step

    def counted(run, step):
        run.teacher.step = step + 1
        return take(run, step)

    monkeypatch.setattr(
        assembly, "load_teacher", lambda source, **options: FailingTeacher(load(source, **options), steps)
    )
    monkeypatch.setattr(trainer, "_step", counted)


def test_a_teacher_that_fails_once_costs_one_step(teacher, tmp_path, monkeypatch, caplog):
    """The step is counted and nothing of it stays: weights, averages and optimiser are those of the step before."""
    arguments = student_arguments(teacher, "--log_every", "1", "--checkpoint_every", "1", "--keep_checkpoints", "9")
    fail_in(monkeypatch, 4)
    out = trained(tmp_path / "run", [*arguments, "--steps", "6"])
    assert [row["skipped"] for row in rows(out)] == [0, 0, 0, 1, 1, 1]
    assert "loss/Matching" not in rows(out)[3]
    assert all(math.isfinite(value) for row in rows(out) for value in row.values())
    words = (
        "skipped step 4: the loss of Matching is nan; the first output that is not finite is that of teacher.denoise"
    )
    assert words in caplog.text
    assert checkpoint_steps(out) == [1, 2, 3, 5, 6]
    third = trained(tmp_path / "four", [*arguments, "--steps", "4"])  # the last step writes whatever happened
    for name in ("student", "ema", "target"):
        stay, before = (third / "checkpoints" / step / f"{name}.safetensors" for step in ("00000004", "00000003"))
        assert stay.read_bytes() == before.read_bytes()
    moments = [
        torch.load(third / "checkpoints" / step / "student.optimizer.pt")["state"] for step in ("00000003", "00000004")
    ]
    assert_same(*({f"{i}.{k}": v for i, s in m.items() for k, v in s.items()} for m in moments))


@pytest.mark.slow
def test_a_bad_step_is_bad_on_both_sides_of_a_checkpoint(teacher, tmp_path, monkeypatch):
    """The count, and the guard's memory, go on after an interruption."""
    fail_in(monkeypatch, 2, 3, 8)
    arguments = student_arguments(teacher, "--steps", "10", "--log_every", "1", "--checkpoint_every", "5")
    whole = trained(tmp_path / "whole", arguments)
    take = trainer._step

    def interrupted(run, step):
        if step == 6:
            raise KeyboardInterrupt
        return take(run, step)

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            trained(tmp_path / "parts", arguments)
    parts = trained(tmp_path / "parts", arguments)
    assert everything(parts) == everything(whole)
    assert rows(parts)[-1]["skipped"] == 3
    assert len(everything(parts)["state"]["extra"]["guards"]["student"]["norms"]) == 7


def test_a_teacher_that_goes_on_failing_ends_the_run(teacher, tmp_path, monkeypatch):
    fail_in(monkeypatch, *range(5, 100))
    arguments = student_arguments(teacher, "--steps", "50", "--skip_limit", "3", "--checkpoint_every", "2")
    sentence = (
        "training stops at step 7: 3 steps in a row were skipped, the first was step 5: the loss of Matching is nan; the "
        "first output that is not finite is that of teacher.denoise. The checkpoint of step 4 is from before and intact"
    )
    with pytest.raises(TrainingDiverged, match=re.escape(sentence)):
        trained(tmp_path / "run", arguments)
    assert checkpoint_steps(tmp_path / "run") == [2, 4]
    assert all(bool(v.isfinite().all()) for v in weights(tmp_path / "run").values())


def test_a_learning_rate_that_explodes_ends_the_run(tmp_path):
    with pytest.raises(TrainingDiverged, match=r"steps in a row were skipped, the first was step \d+: the "):
        trained(tmp_path / "run", teacher_arguments("--steps", "50", "--optimizer.init_args.lr", "1e30"))


def test_weights_that_are_not_finite_are_never_written(tmp_path):
    module = torch.nn.Linear(2, 2)
    module.weight.data[1, 0] = math.inf
    with pytest.raises(TrainingDiverged, match=r"step 9: weight of the ema is not finite, so no checkpoint is written"):
        check_weights(9, {"student": torch.nn.Linear(2, 2), "ema": module}, lambda: [3, 6])


@given(norms=st.lists(st.floats(0.1, 100), max_size=300), seed=st.integers(0, 2**31))
def test_a_spike_is_a_multiple_of_the_median_of_the_last_hundred(norms, seed):
    guard, taken = StepGuard(limit=10**9, spike_factor=5.0), []
    for step, norm in enumerate(norms):
        spike = len(taken) >= 20 and norm > 5 * statistics.median(taken[-100:])
        assert guard.allows(step, {"a": 1.0}, norm) is not spike
        taken += [] if spike else [norm]
        again = StepGuard(limit=10**9, spike_factor=5.0)
        again.load_state_dict(json.loads(json.dumps(guard.state_dict())))
        guard = again
    assert guard.skipped == len(norms) - len(taken)


def test_spikes_can_be_allowed_and_what_is_not_finite_cannot():
    guard = StepGuard(limit=3, spike_factor=None)
    verdicts = [guard.allows(n, {"a": 0.0}, norm) for n, norm in enumerate([1.0] * 30 + [1e30, math.inf, math.nan])]
    assert verdicts == [True] * 31 + [False] * 2
    assert not guard.allows(40, {"a": 1.0, "b": math.inf}, 1.0)
    assert guard.in_a_row == 3
    assert guard.trouble == "step 31: the losses are finite, the norm of the gradient is inf"
    assert guard.allows(41, {"a": 1.0, "b": 1.0}, 1.0)
    assert (guard.in_a_row, guard.skipped) == (0, 3)


def test_a_spike_in_a_real_run_is_skipped(tmp_path, monkeypatch, caplog):
    """A batch whose pictures are a thousand times too bright, once."""
    take = trainer._step

    def glaring(run, step):
        if step != 30:
            return take(run, step)
        images = run.images

        class Glaring:
            shape, num_classes, __len__ = images.shape, images.num_classes, lambda self: len(images)

            def rows(self, indices):
                x0, labels = images.rows(indices)
                return 1000 * x0, labels

        run.input.data = Glaring()
        try:
            return take(run, step)
        finally:
            run.input.data = images

    monkeypatch.setattr(trainer, "_step", glaring)
    out = trained(tmp_path / "run", teacher_arguments("--steps", "35", "--log_every", "5"))
    assert rows(out)[-1]["skipped"] == 1
    assert "skipped step 31: the gradient's norm" in caplog.text
    assert "more than 30 times its running median" in caplog.text


@pytest.mark.slow
def test_a_run_without_spikes_has_the_same_bits_with_and_without_the_guard(tmp_path):
    out = [
        trained(tmp_path / factor, teacher_arguments("--steps", "40", "--spike_factor", factor))
        for factor in ("30", "null")
    ]
    assert_same(weights(out[0]), weights(out[1]))


@pytest.mark.parametrize(
    ("setting", "value", "words"),
    [
        ("spike_factor", "1", "spike_factor must be above 1, or null"),
        ("skip_limit", "0", "skip_limit must be at least 1"),
    ],
)
def test_settings_out_of_range_are_refused(tmp_path, setting, value, words):
    with pytest.raises(ValueError, match=words):
        trained(tmp_path / "run", teacher_arguments("--steps", "1", f"--{setting}", value))


def test_a_discriminator_whose_loss_is_not_finite_stays_as_it_is(teacher, tmp_path, monkeypatch, caplog):
    """In step 4 its loss is nan, once: its weights stay, the step counts as skipped."""
    original = PlayerInTraining.learn

    def learn(self, batch, made, networks, step, **options):
        seen = {name: value * math.nan if step == 3 else value for name, value in made.items()}
        return original(self, batch, seen, networks, step, **options)

    monkeypatch.setattr(PlayerInTraining, "learn", learn)
    discriminator = {"class_path": "ctm.discriminators.MLPDiscriminator"}
    objectives = [
        {"class_path": "ctm.objectives.Matching", "init_args": {"grid_points": 10}},
        {"class_path": "ctm.objectives.Adversarial", "init_args": {"start": 0, "discriminator": discriminator}},
    ]
    arguments = student_arguments(teacher, "--objectives", json.dumps(objectives), "--log_every", "1")
    out = trained(tmp_path / "run", [*arguments, "--steps", "4", "--checkpoint_every", "3"])
    assert [row["skipped"] for row in rows(out)] == [0, 0, 0, 1]
    assert "skipped step 4: the loss of the discriminator is nan" in caplog.text
    third, fourth = (
        load_file(out / "checkpoints" / step / "discriminator.safetensors") for step in ("00000003", "00000004")
    )
    assert all(bool(value.isfinite().all()) for value in fourth.values())
    trained_names = [name for name in third if name.endswith("bias")]
    assert trained_names
    assert_same({name: third[name] for name in trained_names}, {name: fourth[name] for name in trained_names})
