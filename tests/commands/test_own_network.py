"""A network of the user's own: what is wrong with it is told in a sentence that names it."""

import re
import shlex
import sys
from pathlib import Path

import pytest

from ctm.cli import main

from .test_cli import run, sentence

NETWORK = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, {arguments}):
        super().__init__()
        self.layer = nn.Linear(64, 64)

    def forward(self, x, t, s, condition):
        made = self.layer(x.flatten(1))
        return {returned}
"""


@pytest.mark.parametrize(
    ("arguments", "returned", "words"),
    [
        (
            "shape, num_classes, width=8",
            "made",
            r"Net must return a tensor of the shape of x, (16, 1, 8, 8): got (16, 64)",
        ),
        (
            "shape, num_classes, width=8",
            "[made]",
            r"Net must return a tensor of the shape of x, (16, 1, 8, 8): got list",
        ),
        (
            "shape, num_classes, width=8",
            "made.reshape(3)",
            "ownnet, allowed by --allow or CTM_ALLOW, failed in forward (",
        ),
        (
            "shape, num_classes, width=8",
            "__import__('sys').exit(0)",
            "ownnet, allowed by --allow or CTM_ALLOW, failed in forward (SystemExit: 0): mend it",
        ),
        (
            "width=8",
            "made",
            "--network Net: its constructor must take shape and num_classes first, then its settings: Net(shape, num_classes, …)",
        ),
    ],
    ids=["shape", "list", "error", "exit", "constructor"],
)
def test_what_is_wrong_with_a_network_is_a_sentence(capsys, tmp_path, monkeypatch, arguments, returned, words):
    (tmp_path / "ownnet.py").write_text(NETWORK.format(arguments=arguments, returned=returned))
    assert words in trained(capsys, tmp_path, monkeypatch)


BELOW = """
from ctm.networks import MLP


class Net(MLP):
    def forward(self, x, t, s, condition):
        return super().forward(x[..., :3], t, s, condition)
"""


def test_an_error_in_a_part_of_ctm_that_the_network_calls_is_not_told_as_the_networks(capsys, tmp_path, monkeypatch):
    """Either may be wrong: the part of ctm and its caller are named, and the exit code is that of a fault of ctm."""
    (tmp_path / "ownnet.py").write_text(BELOW)
    code, _, said = run(capsys, *command(tmp_path, monkeypatch))
    assert code == 1
    assert said.startswith("ctm: RuntimeError: mat1 and mat2 shapes cannot be multiplied")
    assert "It came up in ctm.networks.mlp, which ownnet calls: a fault of ctm, unless ownnet gives it what it" in said


def test_a_module_that_its_module_needs_is_named(capsys, tmp_path, monkeypatch):
    (tmp_path / "ownnet.py").write_text("import no_such_module\n")
    said = trained(capsys, tmp_path, monkeypatch)
    assert "--network: importing ownnet.Net failed: there is no module no_such_module" in said


def test_the_documented_run_of_an_own_network(tmp_path, monkeypatch):
    """docs/networks.md: the network that it shows, a teacher of it, the CTM of that teacher, samples. With few steps each."""
    page = (Path(__file__).parents[2] / "docs" / "networks.md").read_text()
    (tmp_path / "mynets.py").write_text(next(each for each in re.findall(r"```python\n(.*?)```", page, re.DOTALL)))
    (block,) = re.findall(r"```\n(export .*?)```", page, re.DOTALL)
    exported, *commands = block.strip().splitlines()
    assert exported == "export PYTHONPATH=. CTM_ALLOW=mynets"
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mynets", raising=False)
    monkeypatch.setenv("CTM_ALLOW", "mynets")
    assert [line.split()[1] for line in commands] == ["train", "train", "sample"]
    for line in commands:
        _, *arguments = shlex.split(line)
        few = ["--steps", "3", "--data.batch_size", "16"] if arguments[0] == "train" else []
        assert main([*arguments, *few]) == 0
    assert (tmp_path / "own.png").is_file()


def trained(capsys, tmp_path, monkeypatch) -> str:
    """What a run with the network ownnet.Net says when it fails."""
    return sentence(capsys, *command(tmp_path, monkeypatch))


def command(tmp_path, monkeypatch) -> list[str]:
    """`ctm train` with the network ownnet.Net."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "ownnet", raising=False)
    monkeypatch.setenv("CTM_ALLOW", "ownnet")
    recipe = tmp_path / "own.yaml"
    recipe.write_text(
        "data: {name: digits, batch_size: 16}\nmodel: {kind: diffusion}\n"
        "network: {class_path: ownnet.Net, init_args: {width: 8}}\n"
        "objectives: [{class_path: DenoisingScoreMatching}]\noptimizer: {class_path: torch.optim.Adam}\nsteps: 2\n"
    )
    return ["train", "--config", str(recipe), "--out", str(tmp_path / "run")]
