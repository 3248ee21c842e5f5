import contextlib
import logging
import os
import resource
import shutil

import psutil
import pytest
import torch

from ctm import load_model
from ctm.cli import main
from ctm.training.origin import read_origin
from ctm.training.run_directory import CannotWrite, RunDirectory

from .runs import checkpoint_steps, everything, finish, start, teacher_arguments, trained, wait_for

SHORT = ("--steps", "6", "--checkpoint_every", "2", "--log_every", "2", "--sample_every", "50")


@pytest.fixture(scope="module")
def trained_once(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("once") / "run", teacher_arguments(*SHORT))


@pytest.fixture
def run(trained_once, tmp_path):
    """A copy of the run, to be damaged."""
    return shutil.copytree(trained_once, tmp_path / "run")


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_named_modules_and_optimisers_come_back(tmp_path):
    directory = RunDirectory(tmp_path / "run")
    directory.claim("a: 1")
    made = [torch.nn.Linear(3, 2) for _ in range(4)]
    optimizers = [torch.optim.Adam(module.parameters(), lr=0.1 * (i + 1)) for i, module in enumerate(made[:2])]
    for module, optimizer in zip(made, optimizers, strict=False):
        module(torch.ones(1, 3)).sum().backward()
        optimizer.step()
    extra = {"scale": 0.1 + 0.2, "norms": [1e-17, float("inf")]}
    directory.save(
        5, {"student": made[0], "critic": made[1]}, {"student": optimizers[0], "critic": optimizers[1]}, extra, 1.5
    )
    others = {name: torch.nn.Linear(3, 2) for name in ("student", "critic")}
    fresh = {name: torch.optim.Adam(module.parameters()) for name, module in others.items()}
    kept = directory.load(5, others, fresh)
    assert (kept.step, kept.elapsed, kept.extra) == (5, 1.5, extra)
    for name, module, optimizer in zip(others, made, optimizers, strict=False):
        assert torch.equal(others[name].weight, module.weight)
        assert fresh[name].param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]
        state, before = fresh[name].state[others[name].weight], optimizer.state[module.weight]
        assert torch.equal(state["exp_avg_sq"], before["exp_avg_sq"])
    with pytest.raises(ValueError, match=r"does not fit this recipe .*discriminator\.safetensors"):
        directory.load(5, {"discriminator": made[0]}, {})


@pytest.mark.parametrize("keep", [1, 3])
def test_as_many_checkpoints_stay_as_asked(tmp_path, keep):
    arguments = (*SHORT[2:], "--steps", "8", "--keep_checkpoints", str(keep))
    out = trained(tmp_path / "run", teacher_arguments(*arguments))
    assert checkpoint_steps(out) == [2, 4, 6, 8][-keep:]


@pytest.mark.parametrize("file", ["student.safetensors", "student.optimizer.pt", "state.json", "manifest.json"])
def test_a_damaged_checkpoint_is_named_and_passed_over(run, file, caplog):
    """One bit is enough; the run goes on from the checkpoint before and ends with the same bits."""
    before = everything(run)
    flip_a_bit(run / "checkpoints" / "00000006" / file)
    trained(run, teacher_arguments(*SHORT))
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(said) == 1
    assert "00000006 is damaged (" in said[0]
    assert file in said[0]
    assert "passed over, going on from step 4" in said[0]
    assert everything(run) == before
    assert checkpoint_steps(run) == [4, 6]


def test_where_no_checkpoint_is_whole_nothing_is_lost(run):
    for step in checkpoint_steps(run):
        (run / "checkpoints" / f"{step:08d}" / "ema.safetensors").unlink()
    with pytest.raises(
        ValueError, match=r"\(ema.safetensors is missing\).*No whole checkpoint is left: restore one, or"
    ):
        trained(run, teacher_arguments(*SHORT))
    assert checkpoint_steps(run) == [4, 6]


def test_a_run_killed_while_it_wrote_goes_on(run):
    """Each state that a SIGKILL can leave between two renames, at once."""
    before = everything(run)
    (run / "checkpoints" / "00000006").rename(run / "checkpoints" / ".writing-00000006")
    (run / "model").rename(run / ".old-model")
    (run / ".writing-model").mkdir()
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "loss/Denois')
    trained(run, teacher_arguments(*SHORT))
    assert everything(run) == before
    hidden = [p.name for p in (*run.iterdir(), *(run / "checkpoints").iterdir()) if p.name.startswith(".")]
    assert hidden == [".lock"]


def test_model_is_that_of_the_newest_checkpoint_even_after_the_last_step(run):
    """Killed between the last checkpoint and model/."""
    newest = (run / "model" / "model.safetensors").read_bytes()
    flip_a_bit(run / "model" / "model.safetensors")
    trained(run, teacher_arguments(*SHORT))
    assert (run / "model" / "model.safetensors").read_bytes() == newest
    load_model(run)


def test_a_directory_claimed_but_killed_before_its_settings_were_whole_is_free(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".config.yaml.writing").write_text("data: {na")
    trained(tmp_path / "run", teacher_arguments("--steps", "1"))


def test_a_full_disk_stops_the_run_with_a_sentence_and_the_checkpoint_intact(tmp_path):
    """The system refuses bytes in mid-run: a limit on file sizes, set from outside, stands for the full disk."""
    out, arguments = (
        tmp_path / "run",
        teacher_arguments("--steps", "60", "--checkpoint_every", "10", "--log_every", "10"),
    )
    process = start(arguments, out)
    wait_for(process, out / "checkpoints", "00000010")
    psutil.Process(process.pid).rlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    _, said = finish(process, 2)
    lines = said.strip().splitlines()
    assert len(lines) == 1, said
    reached = checkpoint_steps(out)[-1]
    assert lines[0].startswith(f"ctm: {out} cannot be written to (File too large): training stops")
    assert f"the checkpoint of step {reached} is intact" in lines[0]
    directory = RunDirectory(out)
    assert directory.latest() == reached
    assert not list(out.glob("checkpoints/.*"))
    finish(start(arguments, out))
    whole = trained(tmp_path / "whole", arguments)
    assert everything(out) == everything(whole)


@contextlib.contextmanager
def unprivileged():
    """The permissions of nobody, where the tests run as root, whom none are refused."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


def let_others_in(path):
    """pytest's own directories, as many as there are above a test's, are for their owner alone."""
    names = [directory.name.startswith("pytest-of-") for directory in (path, *path.parents)]
    for directory in [path, *path.parents][: names.index(True) + 1 if True in names else 1]:
        directory.chmod(0o755)


def test_no_permission_stops_the_run_with_a_sentence(tmp_path, monkeypatch, capsys):
    out, save = tmp_path / "run", RunDirectory.save

    def refused(self, step, *arguments):
        if step == 2:
            return save(self, step, *arguments)
        self.checkpoints.chmod(0o555)
        try:
            with unprivileged():
                return save(self, step, *arguments)
        finally:
            self.checkpoints.chmod(0o755)

    monkeypatch.setattr(RunDirectory, "save", refused)
    let_others_in(tmp_path)
    assert main(["train", *teacher_arguments(*SHORT), "--out", str(out)]) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith(f"ctm: {out} cannot be written to (Permission denied): training stops")
    assert "the checkpoint of step 2 is intact" in said
    assert len(said.splitlines()) == 1
    assert RunDirectory(out).latest() == 2


def test_a_new_directory_without_permission_is_a_sentence(tmp_path):
    let_others_in(tmp_path)
    tmp_path.chmod(0o555)
    with (
        pytest.raises(CannotWrite, match=r"\(Permission denied\): training stops, there is no checkpoint yet"),
        unprivileged(),
    ):
        RunDirectory(tmp_path / "run").claim("a: 1")


def test_nested_deep_json_in_a_run_directory_is_damage(tmp_path):
    directory = RunDirectory(tmp_path / "run")
    directory.claim("a: 1")
    (directory.path / "model").mkdir()
    (directory.path / "model" / "config.json").write_text("[" * 100_000)
    assert directory.tuned_grids("model", None) == {}
    directory.save(1, {}, {}, {}, 0.0)
    (directory.checkpoint(1) / "state.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match="does not fit this recipe"):
        directory.load(1, {}, {})
    (directory.path / "made_of.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"made_of\.json is damaged"):
        read_origin(directory.path)
