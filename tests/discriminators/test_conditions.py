"""Discriminators of samples whose condition has fields, and of those whose condition has none."""

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from ctm import Arrays, ConsistencyModel, Labels
from ctm.discriminators import Discriminator, MLPDiscriminator, ProjectedDiscriminator, built_for
from ctm.discriminators.projected import LogitHead
from ctm.networks import MLP
from ctm.objectives.adversarial_losses import log_discriminator


def learned(network: nn.Module, batch) -> nn.Module:
    """The network after 300 steps of the log-loss on (data, fakes, condition)."""
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    for _ in range(300):
        real, fake, condition = batch()
        optimizer.zero_grad()
        log_discriminator(network(real, condition), network(fake, condition)).backward()
        optimizer.step()
    return network


@pytest.mark.slow
def test_its_logit_becomes_the_density_ratio_under_the_condition():
    """Of N(y, 1) against N(−y, 1) it is 2xy (arXiv 1406.2661, proposition 1). Where y is absent, it is known of neither: 0."""

    def batch():
        y, noise = torch.randn(512, 1), torch.randn(2, 512, 1)
        return y + noise[0], noise[1] - y, {"y": y, "y_present": torch.rand(512) < 0.7}

    network = learned(MLPDiscriminator(width=32, layers=2).build((1,), 0, arrays={"y": (1,)}), batch)
    x, y = (
        part.reshape(-1, 1)
        for part in torch.meshgrid(torch.linspace(-1, 1, 5), torch.linspace(-1, 1, 5), indexing="ij")
    )
    torch.testing.assert_close(network(x, {"y": y})[0].detach(), 2 * x * y, atol=0.6, rtol=0)
    for absent in (None, {"y": y, "y_present": torch.zeros(25, dtype=torch.bool)}):
        torch.testing.assert_close(network(x, absent)[0].detach(), torch.zeros_like(x), atol=0.4, rtol=0)


def test_a_map_is_seen_beside_the_sample():
    """Data are the map with noise, fakes its negative: x alone does not tell them apart, both together nearly always do."""

    def batch():
        m = torch.randn(256, 1, 2, 2).sign()
        noise = 0.3 * torch.randn(2, *m.shape)
        return m + noise[0], noise[1] - m, {"m": m}

    network = learned(MLPDiscriminator(width=32, layers=2).build((1, 2, 2), 0, arrays={"m": (1, 2, 2)}), batch)
    real, fake, condition = batch()
    assert (network(real, condition)[0] > 0).float().mean() > 0.95
    assert (network(fake, condition)[0] < 0).float().mean() > 0.95
    without = torch.cat([network(real)[0] > 0, network(fake)[0] < 0]).float().mean()
    assert 0.35 < without < 0.65


def test_a_heads_fields_have_spectral_norm_one_and_absence_adds_nothing_at_first():
    head = LogitHead(3, (8, 8), 16, 2, {"y": (5,), "z": ()}).eval()
    features, y, z = torch.randn(2, 3, 8, 8), torch.randn(2, 5), torch.randn(2)
    labels = torch.tensor([1, -1])
    for module in head.fields.vectors.values():
        assert torch.linalg.matrix_norm(module.first.weight, 2).item() == pytest.approx(1, abs=0.05)
        assert torch.linalg.matrix_norm(module.second.weight, 2).item() == pytest.approx(1, abs=0.05)
    whole = head(features, {"labels": labels, "y": y, "z": z})
    some = head(features, {"labels": labels, "y": y})
    none = head(features, labels)
    assert whole.shape == none.shape == (2, 1, 4, 4)
    assert not torch.equal(whole, some)
    assert not torch.equal(some, none)
    assert torch.equal(head(features)[1], none[1])
    flags = {"y": y, "y_present": torch.tensor([False, True])}
    assert torch.equal(head(features, flags)[0], head(features)[0])


def test_without_fields_its_weights_and_draws_are_what_they_were():
    """The body, the logit, the labels, in this order, from torch's generator."""
    torch.manual_seed(3)
    network, after = MLPDiscriminator(width=4, layers=2).build((2, 3), 5), torch.rand(1)
    torch.manual_seed(3)
    layers = [nn.Linear(6, 4), nn.Linear(4, 4), nn.Linear(4, 1), nn.Embedding(5, 4)]
    assert torch.equal(after, torch.rand(1))
    expected = [value for layer in layers for value in layer.state_dict().values()]
    assert list(network.state_dict()) == [
        *(f"body.{index}.{name}" for index in (0, 2) for name in ("weight", "bias")),
        "logit.weight",
        "logit.bias",
        "labels.weight",
    ]
    assert all(torch.equal(a, b) for a, b in zip(network.state_dict().values(), expected, strict=True))
    torch.manual_seed(3)
    head, after = LogitHead(3, (8, 8), 8, 5), torch.rand(1)
    torch.manual_seed(3)
    layers = [spectral_norm(nn.Conv2d(3, 8, 4, 2, padding=1, bias=False)), nn.GroupNorm(1, 8)]
    layers += [spectral_norm(nn.Conv2d(8, 1, 1)), spectral_norm(nn.Embedding(5, 8))]
    assert torch.equal(after, torch.rand(1))
    expected = [value for layer in layers for value in layer.state_dict().values()]
    assert all(torch.equal(a, b) for a, b in zip(head.state_dict().values(), expected, strict=True))


def student(conditioner) -> ConsistencyModel:
    network = MLP((2,), conditioner.num_classes, width=8, blocks=1, embedding=8, arrays=dict(conditioner.fields))
    return ConsistencyModel(network, shape=(2,), num_classes=conditioner.num_classes)


class Own(Discriminator):
    """A user's own, from before there were fields."""

    def build(self, shape, num_classes, networks=None):
        return nn.Linear(shape[0], 1 + num_classes)


def test_a_users_own_discriminator_serves_labels_and_is_refused_fields():
    assert built_for(Own(), student(Labels(3)), None, moves=True).out_features == 4
    with pytest.raises(
        ValueError, match="Own takes no fields of a condition, and the data have y: give its build an argument"
    ):
        built_for(Own(), student(Labels(3) | Arrays({"y": (2,)})), None, moves=False)


def test_fields_that_fit_nowhere_are_refused():
    with pytest.raises(ValueError, match="the field 'text' has shape"):
        MLPDiscriminator().build((1, 4, 4), 0, arrays={"text": (7, 8)})
    with pytest.raises(ValueError, match="which take no map beside them, and the data have map"):
        ProjectedDiscriminator().build((1, 8, 8), 0, arrays={"map": (1, 8, 8), "y": (2,)})
