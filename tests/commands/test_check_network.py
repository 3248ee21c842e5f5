import sys

import pytest

from ctm.cli import main

from .test_cli import sentence


def test_one_of_ours_passes(capsys):
    assert (
        main(["check-network", "UNet1d", "--shape", "2,8", "--init_args", "{channels: 8, channel_mult: [1, 2]}"]) == 0
    )
    said = capsys.readouterr().out
    assert "ctm.networks.UNet1d for samples of shape [2, 8]" in said
    assert said.count("passed") == 5


OWN = """
from torch import nn


class Net(nn.Module):
    def __init__(self, shape, num_classes, width=8):
        super().__init__()
        self.layer = nn.Linear(shape[0], shape[0])

    def forward(self, x, t, s, condition):
        return self.layer(x)
"""


def test_a_users_own_network_fails_in_a_sentence(capsys, tmp_path, monkeypatch):
    (tmp_path / "checkednet.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "checkednet", None)
    monkeypatch.delitem(sys.modules, "checkednet")
    arguments = ["check-network", "checkednet.Net", "--shape", "6"]
    assert "--allow checkednet" in sentence(capsys, *arguments)
    said = sentence(capsys, *arguments, "--allow", "checkednet")
    assert "checkednet.Net failed 1 of 5 checks: start" in said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["MLP", "--shape", "6,x"], "--shape is whole numbers with commas, such as 3,32,32, got 'x'"),
        (["MLP", "--shape", "0"], "--shape must be a list of whole numbers of at least 1"),
        (["Perceptron", "--shape", "6"], "there is no network ctm.networks.Perceptron: there are"),
        (["UNet1d", "--shape", "6"], "UNet1d takes sequences (C, L), got shape [6]"),
    ],
)
def test_what_cannot_be_built_is_a_sentence(capsys, arguments, words):
    assert words in sentence(capsys, "check-network", *arguments)
