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
    said = sentence(capsys, *arguments)
    assert "the command asks for checkednet.Net, which is not part of ctm.networks: nothing was imported" in said
    assert "--allow checkednet" in said
    said = sentence(capsys, *arguments, "--allow", "checkednet")
    assert "checkednet.Net failed 1 of 5 checks: start" in said
    said = sentence(capsys, *arguments, "--allow", "checkednet", "--arrays", "{observation: [20]}")
    assert "checkednet.Net: this network takes no fields (arrays=), and it is to be built for observation" in said


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("        raise SystemExit(0)", "endingnet.Net failed 4 of 5 checks: call, rows, start, derivatives"),
        ("        pass\n\nraise SystemExit(0)", "endingnet.Net cannot be imported (SystemExit: 0)"),
    ],
    ids=["forward", "import"],
)
def test_a_network_that_ends_the_process_has_failed(capsys, tmp_path, monkeypatch, place, words):
    """SystemExit(0) is no success, wherever the network raises it."""
    (tmp_path / "endingnet.py").write_text(OWN.replace("        return self.layer(x)", place))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "endingnet", None)
    monkeypatch.delitem(sys.modules, "endingnet")
    assert words in sentence(capsys, "check-network", "endingnet.Net", "--shape", "6", "--allow", "endingnet")


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
