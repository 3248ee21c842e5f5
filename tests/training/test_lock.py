"""One process at a time writes a run directory."""

import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from ctm import lock
from ctm.cli import main
from ctm.lock import LOCK, DirectoryInUse, DirectoryLock, run_locked
from ctm.terminal.failures import sentence_of

from .runs import start, teacher_arguments, trained, wait_for

HOLD = """
import importlib.util, pathlib, sys, time
spec = importlib.util.spec_from_file_location("lock", sys.argv[1])  # the file alone: the package brings torch
lock = importlib.util.module_from_spec(spec)
spec.loader.exec_module(lock)
held = lock.DirectoryLock(pathlib.Path(sys.argv[2]))
held.take()
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock of tmp_path."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, lock.__file__, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_case_13_the_second_is_refused_and_told_who_the_first_is(tmp_path, holder):
    with pytest.raises(DirectoryInUse) as refused:
        DirectoryLock(tmp_path).take()
    assert f"{tmp_path} is being written by process {holder.pid} on {socket.gethostname()}, which began at 20" in str(
        refused.value
    )
    assert "let it end or stop it, or use another --out" in str(refused.value)
    assert json.loads((tmp_path / LOCK).read_text())["pid"] == holder.pid  # the refused one changed nothing


def test_case_13_what_writes_into_a_runs_model_waits_for_nobody(tmp_path, holder):
    with pytest.raises(DirectoryInUse, match=f"is being written by process {holder.pid} on "), run_locked(tmp_path):
        raise AssertionError
    (tmp_path / "no-run").mkdir()
    with run_locked(tmp_path / "no-run"):
        pass
    assert list((tmp_path / "no-run").iterdir()) == []


def test_a_killed_process_holds_nothing(tmp_path, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    mine = DirectoryLock(tmp_path)
    mine.take()
    assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
    mine.release()
    assert (tmp_path / LOCK).read_text() == ""
    DirectoryLock(tmp_path).take()


def test_a_planted_link_is_not_followed(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("kept")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / LOCK).symlink_to(victim)
    with pytest.raises(OSError, match="symbolic link") as refused:
        DirectoryLock(tmp_path / "run").take()
    assert f"{tmp_path / 'run' / LOCK}: " in sentence_of(refused.value)
    assert "it is a link: remove it, or name another place" in sentence_of(refused.value)
    (tmp_path / "run" / LOCK).unlink()
    (tmp_path / "run" / LOCK).symlink_to(tmp_path / "none")
    with pytest.raises(OSError, match="symbolic link"):
        DirectoryLock(tmp_path / "run").take()
    assert (victim.read_text(), (tmp_path / "none").exists()) == ("kept", False)


def test_where_no_lock_is_to_be_had_a_warning_says_so(tmp_path, monkeypatch, caplog):
    def refuse(descriptor, how):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    DirectoryLock(tmp_path).take()
    assert "cannot be locked (No locks available): two processes writing it would not notice each other" in caplog.text


def test_case_13_training_where_another_process_does(tmp_path, holder, capsys):
    assert main(["train", *teacher_arguments("--steps", "2"), "--out", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert f"ctm: {tmp_path} is being written by process {holder.pid} on " in said
    assert len(said.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == [LOCK]


@pytest.mark.slow
def test_case_13_two_trainings_in_one_directory(tmp_path, capsys):
    """The first, a real command, trains on unharmed; the second ends with the sentence and 2."""
    out = tmp_path / "run"
    arguments = teacher_arguments("--steps", "100000", "--log_every", "1")
    first = start(arguments, out)
    wait_for(first, out, "metrics.jsonl")
    try:
        assert main(["train", *arguments, "--out", str(out)]) == 2
        said = capsys.readouterr().err
        assert f"ctm: {out} is being written by process {first.pid} on " in said
        deadline, before = time.monotonic() + 60, len((out / "metrics.jsonl").read_text().splitlines())
        while len((out / "metrics.jsonl").read_text().splitlines()) <= before:
            assert first.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        first.kill()
        first.communicate()


def test_a_run_that_ended_in_any_way_gives_the_directory_back(tmp_path):
    arguments = teacher_arguments("--steps", "1")
    trained(tmp_path / "run", arguments)
    trained(tmp_path / "run", arguments)
    with pytest.raises(ValueError, match="other settings"):
        trained(tmp_path / "run", [*arguments, "--seed", "1"])
    DirectoryLock(tmp_path / "run").take()
