"""The five checks: ours pass, and a network with one thing wrong fails that check alone."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn

from ctm.conditioner import Arrays, Conditioner, Labels
from ctm.networks import ADM, MLP, DDPMpp, DiT, UNet1d
from ctm.training import check_network

OURS = {
    "mlp": (lambda **kw: MLP((2, 4, 6), 3, width=16, blocks=1, embedding=8, **kw), (2, 4, 6)),
    "ddpmpp": (lambda **kw: DDPMpp((2, 4, 6), 3, channels=8, channel_mult=(1, 2), blocks=1, **kw), (2, 4, 6)),
    "adm": (
        lambda **kw: ADM((2, 4, 6), 3, channels=8, channel_mult=(1,), blocks=1, attention=(4,), head_channels=4, **kw),
        (2, 4, 6),
    ),
    "dit": (lambda **kw: DiT((2, 4, 6), 3, width=16, blocks=1, heads=2, embedding=8, **kw), (2, 4, 6)),
    "unet1d": (lambda **kw: UNet1d((2, 6), 3, channels=8, channel_mult=(1, 2), blocks=1, embedding=8, **kw), (2, 6)),
}


@pytest.mark.parametrize("name", OURS)
def test_our_networks_pass(name):
    build, shape = OURS[name]
    fields = {"observation": (3,), "beside": (1, *shape[1:])} | ({"text": (4, 5)} if name == "dit" else {})
    findings = check_network(build(arrays=fields), shape, Labels(3) | Arrays(fields))
    assert [found.name for found in findings] == ["call", "rows", "start", "condition", "derivatives"]
    assert [found for found in findings if not found.passed] == []


class Plain(nn.Module):
    """A network that passes, with places for faults."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(6 + 1 + 2, 8), nn.Linear(8, 6)
        self.s = nn.Linear(1, 8)
        nn.init.zeros_(self.s.weight)
        nn.init.zeros_(self.s.bias)

    def told(self, x, t, condition):
        value = torch.zeros(len(x), 1).to(x)
        there = value[:, 0] > 1
        if condition is not None:
            there = condition["y_present"]
            value = torch.where(there[:, None], condition["y"], 0)
        return torch.cat([x, t.log()[:, None], value, there[:, None].to(x)], dim=1)

    def hidden(self, x, t, s, condition):
        hidden = self.first(self.told(x, t, condition))
        return hidden if s is None else hidden + self.s(s[:, None])

    def forward(self, x, t, s, condition):
        return self.last(torch.tanh(self.hidden(x, t, s, condition)))


class OtherShape(Plain):
    def forward(self, x, t, s, condition):
        return super().forward(x, t, s, condition)[:, :5]


class Mixes(Plain):
    def forward(self, x, t, s, condition):
        made = super().forward(x, t, s, condition)
        return made - made.mean(dim=0)


class KnowsS(Plain):
    def __init__(self):
        super().__init__()
        nn.init.ones_(self.s.weight)


class IgnoresS(Plain):
    def hidden(self, x, t, s, condition):
        return self.first(self.told(x, t, condition)) + self.s(t[:, None])


class Leaks(Plain):
    def told(self, x, t, condition):
        value = torch.zeros(len(x), 1).to(x) if condition is None else condition["y"]
        there = torch.zeros(len(x), 1).to(x) if condition is None else condition["y_present"][:, None].to(x)
        return torch.cat([x, t.log()[:, None], value, there], dim=1)


class Idle(Plain):
    def __init__(self):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(3))


class Detached(Plain):
    """Its forward derivative leaves out a part that finite differences see."""

    def forward(self, x, t, s, condition):
        made = super().forward(x, t, s, condition)
        return made + self.last(torch.tanh(self.hidden(x.detach(), t, s, condition)))


class Raises(Plain):
    def forward(self, x, t, s, condition):
        raise RuntimeError("no such \x1b[31mlayer\a")


class Ends(Plain):
    def forward(self, x, t, s, condition):
        raise SystemExit(0)


class Normed(Plain):
    """Batch norm mixes the samples of a batch while a network is trained, and not in eval mode."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(8)

    def hidden(self, x, t, s, condition):
        return self.norm(super().hidden(x, t, s, condition))


class MixesLater(Plain):
    """The last sample sees the first one, in training mode only."""

    def hidden(self, x, t, s, condition):
        made = super().hidden(x, t, s, condition)
        return torch.cat([made[:-1], made[-1:] + made[:1]]) if self.training and len(x) > 1 else made


class Counts(Plain):
    """Another output at each call in training mode."""

    calls = 0

    def hidden(self, x, t, s, condition):
        self.calls += self.training
        return super().hidden(x, t, s, condition) + 0.1 * self.calls


class Drops(Plain):
    """Dropout of values, and of whole samples."""

    def hidden(self, x, t, s, condition):
        made = nn.functional.dropout(super().hidden(x, t, s, condition), 0.5, self.training)
        return made * (torch.rand(len(x), 1) > 0.3) if self.training else made


@pytest.mark.parametrize(
    ("network", "failed", "words"),
    [
        (Plain, [], ""),
        (OtherShape, ["call"], "must return a tensor of the shape of x, (4, 6), got (4, 5)"),
        (Mixes, ["rows"], "depends on the others in its batch"),
        (KnowsS, ["start"], "Let what comes from s begin at zero"),
        (IgnoresS, ["start"], "never depends on s"),
        (Leaks, ["condition"], "where y is absent, its output depends on the values that stand there"),
        (Idle, ["derivatives"], "no gradient reaches unused"),
        (Detached, ["derivatives"], "Lagrangian and Eulerian cannot be used with it, Matching can"),
        (Raises, ["call"], "it raised RuntimeError: no such [31mlayer"),
        (Ends, ["call"], "it raised SystemExit: 0"),
        (
            Normed,
            ["rows"],
            "in training mode, network.train(), a sample's output depends on the others in its batch, as BatchNorm1d",
        ),
        (
            MixesLater,
            ["rows"],
            "in training mode, network.train(), a sample's output depends on the others in its batch: it",
        ),
        (Counts, ["rows"], "the same call with the same torch.manual_seed gives another output"),
        (Drops, [], ""),
    ],
)
def test_a_fault_fails_its_own_check(network, failed, words):
    findings = check_network(network(), (6,), Arrays({"y": (1,)}))
    found = [finding for finding in findings if not finding.passed]
    assert [finding.name for finding in found][: len(failed)] == failed
    assert network in (OtherShape, Raises, Ends) or len(found) == len(failed)
    assert all(words in finding.words for finding in found[:1])


def test_a_signal_during_a_check_ends_it():
    """A SystemExit is the network's own; what a signal raises, a kind of it, and Ctrl-C are not."""

    class Stopped(SystemExit):
        pass

    for kind in (Stopped, KeyboardInterrupt):

        class Stops(Plain):
            def forward(self, x, t, s, condition, kind=kind):
                raise kind

        with pytest.raises(kind):
            check_network(Stops(), (6,), Arrays({"y": (1,)}))


def test_a_network_without_a_condition():
    network = MLP((5,), width=8, blocks=1, embedding=8)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    findings = check_network(network, (5,), Conditioner())
    assert all(found.passed for found in findings)
    assert findings[3].words == "it takes no condition"
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_the_documented_network_passes():
    """docs/networks.md shows a whole network, and the five checks from Python."""
    page = (Path(__file__).parents[2] / "docs" / "networks.md").read_text()
    own, checked = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    names: dict = {}
    exec(own, names)
    assert [
        found for found in check_network(names["Net"]((3, 8, 8), 10), (3, 8, 8), Labels(10)) if not found.passed
    ] == []
    exec(checked, {})
