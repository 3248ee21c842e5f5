import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ctm.terminal.recipe_parser import parse_recipe
from ctm.training import train
from ctm.training.engine import EngineSettings

from .runs import finish, start
from .test_trainer import assert_same, student_arguments, teacher_recipe, weights

SEVERAL = (
    '[{"class_path": "ctm.training.Decay", "init_args": {"decay": 0.5}},'
    ' {"class_path": "ctm.training.PowerFunction", "init_args": {"sigma_rel": 0.1}}]'
)


def in_two_processes(arguments: list[str], out: Path) -> None:
    finish(start(arguments, out, 2))


@pytest.mark.slow
def test_two_processes_with_shares_make_the_steps_of_one(tmp_path):
    """Weights, averages and the optimiser's state in two halves, through gloo: after four steps in pieces, with
    adaptive weights and clipping, all are those of one process; the files have the same form; and a run that goes on from
    the second step's checkpoint ends with the same bits."""
    recipe, text = teacher_recipe("--steps", "3")
    train(recipe, tmp_path / "teacher", text)
    arguments = student_arguments(
        tmp_path / "teacher", "--steps", "4", "--checkpoint_every", "2", "--ema", SEVERAL, "--sample_every", "4",
        "--engine.sharding", "fsdp2", "--engine.accumulate", "2", "--engine.clip_gradient_norm", "0.5",
    )  # fmt: skip
    in_two_processes(arguments, tmp_path / "two")
    recipe, text = parse_recipe(arguments)
    train(recipe, tmp_path / "one", text)
    last = Path("checkpoints/00000004")
    names = sorted(path.name for path in (tmp_path / "one" / last).glob("*.safetensors"))
    assert names == ["ema-power-0.1.safetensors", "ema.safetensors", "student.safetensors", "target.safetensors"]
    for name in (*[last / name for name in names], Path("model-power-0.1/model.safetensors")):
        two, one = load_file(tmp_path / "two" / name), load_file(tmp_path / "one" / name)
        assert two.keys() == one.keys()
        for key, value in one.items():
            torch.testing.assert_close(two[key], value, rtol=1e-4, atol=1e-5)
    two, one = (
        torch.load(tmp_path / name / last / "student.optimizer.pt", weights_only=True) for name in ("two", "one")
    )
    for index, state in one["state"].items():
        for key, value in state.items():
            torch.testing.assert_close(two["state"][index][key], value, rtol=1e-3, atol=1e-6)
    shutil.copytree(tmp_path / "two", tmp_path / "parts")
    shutil.rmtree(tmp_path / "parts" / last)
    in_two_processes(arguments, tmp_path / "parts")
    assert_same(weights(tmp_path / "parts"), weights(tmp_path / "two"))


def test_what_does_not_go_with_shares_is_a_sentence():
    with pytest.raises(
        ValueError, match=r"fsdp2 goes with precision fp32 or bf16 and without compile, got precision fp16"
    ):
        EngineSettings(sharding="fsdp2", precision="fp16")
