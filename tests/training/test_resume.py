"""Runs of the real command, killed or told to stop, in one process and in two: continued, they end with the same bits."""

import json
import os
import re
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from ..conftest import slow
from .runs import (
    EVERY,
    OFTEN,
    checkpoint_steps,
    everything,
    finish,
    kill_at_random,
    start,
    start_torchrun,
    student_arguments,
    teacher_arguments,
    trained,
    wait_for,
)


@dataclass(frozen=True)
class Case:
    """A recipe whose runs are broken: the arguments of `ctm train` from the teacher's directory, and the number of steps."""

    name: str
    arguments: Callable[[Path], list[str]]
    steps: int = 60


def adversarial_arguments(teacher: Path) -> list[str]:
    """From step 20 on with a small discriminator of its own features, so that every moment may fall into its training."""
    discriminator = {
        "class_path": "ctm.objectives.Adversarial",
        "init_args": {"start": 20, "discriminator": {"class_path": "ctm.discriminators.MLPDiscriminator"}},
    }
    objectives = [{"class_path": "ctm.objectives.Matching", "init_args": {"grid_points": 10}}, discriminator]
    return student_arguments(teacher, "--objectives", json.dumps(objectives))


CASES = [Case("ctm", student_arguments), slow(Case("gan", adversarial_arguments))]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    return trained(tmp_path_factory.mktemp("teacher") / "run", teacher_arguments("--steps", "5"))


@pytest.mark.parametrize("case", CASES, ids=["ctm", "gan"])
def test_a_run_killed_at_a_random_moment_ends_with_the_same_bits(case, teacher, tmp_path):
    """2n steps equal n steps, SIGKILL, resume: weights, averages, optimisers, guard, log."""
    arguments = [*case.arguments(teacher), *OFTEN, "--steps", str(case.steps)]
    kill_at_random(start(arguments, tmp_path / "parts"), tmp_path / "parts", case.steps // 2)
    finish(start(arguments, tmp_path / "parts"))
    trained(tmp_path / "whole", arguments)
    assert everything(tmp_path / "parts") == everything(tmp_path / "whole")


@pytest.mark.slow
def test_two_processes_killed_and_told_to_stop_end_with_the_same_bits(teacher, tmp_path):
    """The group is killed at a random moment; going on, SIGTERM to the second process stops both with exit code 0 after a
    checkpoint; going on again, the run ends with the bits of an unbroken one in two processes. (Through torchrun: the tests
    of steps in two processes, and of a failure below.)"""
    arguments = [*student_arguments(teacher), *OFTEN, "--steps", "80"]
    kill_at_random(start(arguments, tmp_path / "parts", 2), tmp_path / "parts", 30)
    process = start(arguments, tmp_path / "parts", 2)
    at_start = max(checkpoint_steps(tmp_path / "parts"), default=0)
    wait_for(process, tmp_path / "parts" / "checkpoints", f"{at_start + EVERY:08d}")
    process.members[1].terminate()
    printed, _ = finish(process)
    step = int(re.search(r"stopped by SIGTERM after the checkpoint of step (\d+)", printed)[1])
    assert checkpoint_steps(tmp_path / "parts")[-1] == step < 80
    assert printed.count("SIGTERM") == 1
    finish(start(arguments, tmp_path / "parts", 2))
    finish(start(arguments, tmp_path / "whole", 2))
    assert everything(tmp_path / "parts")["checkpoint"] == everything(tmp_path / "whole")["checkpoint"]
    assert everything(tmp_path / "parts")["model"] == everything(tmp_path / "whole")["model"]
    assert everything(tmp_path / "parts")["state"] == everything(tmp_path / "whole")["state"]


@pytest.mark.parametrize(
    ("number", "code", "words"),
    [
        (
            signal.SIGTERM,
            0,
            r"stopped by SIGTERM after the checkpoint of step (\d+); the same command goes on from there",
        ),
        slow(signal.SIGINT, 130, "stopped by Ctrl-C. The same command goes on from here."),
    ],
)
def test_a_signal_writes_a_checkpoint_and_ends_the_run(tmp_path, number, code, words):
    out, arguments = (
        tmp_path / "run",
        teacher_arguments("--steps", "3000", "--checkpoint_every", "1000", "--log_every", "1"),
    )
    process = start(arguments, out)
    wait_for(process, out, "metrics.jsonl")
    while process.poll() is None and not (out / "metrics.jsonl").read_text():
        pass
    os.kill(process.pid, number)
    printed, said = finish(process, code)
    assert re.search(words, printed + said)
    assert "Traceback" not in said
    assert len(checkpoint_steps(out)) == 1
    assert 0 < checkpoint_steps(out)[0] < 3000


@pytest.mark.slow
def test_a_failure_of_the_main_process_ends_all_processes(tmp_path):
    """The directory holds another run: one sentence, and nobody waits for ever."""
    trained(tmp_path / "run", teacher_arguments("--steps", "1"))
    again = teacher_arguments("--steps", "1", "--seed", "1")
    _, said = finish(start_torchrun(again, tmp_path / "run"), 1)  # torchrun's own code
    assert said.count("holds a run with other settings (seed: 0 there, 1 here)") == 1
