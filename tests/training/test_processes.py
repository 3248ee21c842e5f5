"""What is said where a launcher has not started the processes it was asked for."""

import pytest
from accelerate import Accelerator

from ctm.cli import main
from ctm.training.processes import check_launch

from .runs import teacher_arguments

ASKED = {"ACCELERATE_DYNAMO_BACKEND": "NO", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.fixture
def environment(monkeypatch):
    for name in (*ASKED, "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_case_12_accelerate_on_cpus_starts_one_process_and_a_sentence_says_so(environment, tmp_path, capsys):
    """The environment is that which `accelerate launch --num_processes 2` makes on a machine without GPUs."""
    for name, value in ASKED.items():
        environment.setenv(name, value)
    assert main(["train", *teacher_arguments("--steps", "1"), "--out", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert said.startswith(
        "ctm: accelerate launch was asked for several processes and started one: on CPUs it starts several"
    )
    assert "torchrun --nproc_per_node 2 -m -- ctm train" in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        ("train", [*teacher_arguments(), "--dry-run"]),
        ("evaluate", ["nowhere", "--data", "digits"]),
    ],
)
def test_case_12_other_commands_that_share_work_say_it_too_by_their_name(
    environment, tmp_path, capsys, command, arguments
):
    for name, value in ASKED.items():
        environment.setenv(name, value)
    environment.chdir(tmp_path)
    assert main([command, *arguments]) == 2
    said = capsys.readouterr().err
    assert "accelerate launch was asked for several processes and started one" in said
    assert f"torchrun --nproc_per_node 2 -m -- ctm {command} …" in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "others",
    [
        {},
        {"MASTER_ADDR": "127.0.0.1"},
        {"ACCELERATE_DYNAMO_BACKEND": "NO"},  # accelerate launch --num_processes 1
        {**ASKED, "WORLD_SIZE": "1"},  # torchrun or accelerate with GPUs
    ],
)
def test_one_process_that_is_wanted_is_fine(environment, others):
    for name, value in others.items():
        environment.setenv(name, value)
    check_launch(Accelerator(cpu=True).num_processes, "train")
