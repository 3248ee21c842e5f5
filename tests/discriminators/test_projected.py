import pytest
import torch

from ctm import DiffusionModel
from ctm.backbones import EfficientNetLite0, FunctionBackbone, TeacherEncoder
from ctm.discriminators import ProjectedDiscriminator
from ctm.discriminators.projected import LogitHead, RandomMixing
from ctm.networks import DDPMpp
from ctm.objectives import Networks
from ctm.objectives.adversarial_losses import hinge_discriminator
from tests.conftest import random_weights

NETWORK = EfficientNetLite0(side=32)


def built(num_classes=0, seed=0):
    torch.manual_seed(seed)
    return ProjectedDiscriminator((NETWORK,), mixed_channels=16, width=16).build((1, 8, 8), num_classes)


def test_the_mixing_is_frozen_and_comes_from_the_seed_alone():
    """Other weights of the heads, same mixing; another seed of the mixing, another mixing."""
    first, again = built(), built(seed=7)
    changed = ProjectedDiscriminator((NETWORK,), mixed_channels=16, width=16, seed=1).build((1, 8, 8), 0)
    maps = NETWORK(torch.rand(2, 1, 8, 8))
    outputs = [network.mixings[0](maps) for network in (first, again, changed)]
    for a, b, c in zip(*outputs, strict=True):
        assert torch.equal(a, b)
        assert not torch.equal(a, c)
    assert not list(first.mixings.parameters())
    head_weights = [next(network.heads.parameters()) for network in (first, again)]
    assert not torch.equal(*head_weights)


def test_the_mixing_is_the_formula_and_keeps_the_scale():
    """On two maps by hand; unit-variance maps stay of order one."""
    mixing = RandomMixing([3, 5], 8, torch.Generator().manual_seed(0))
    fine, coarse = torch.randn(64, 3, 8, 8), torch.randn(64, 5, 4, 4)
    low = torch.nn.functional.conv2d(coarse, mixing.channel_1)
    low = torch.nn.functional.conv2d(low, mixing.scale_1, padding=1)
    up = torch.nn.Upsample(scale_factor=2, mode="bilinear")(low)
    high = torch.nn.functional.conv2d(
        torch.nn.functional.conv2d(fine, mixing.channel_0) + up, mixing.scale_0, padding=1
    )
    found = mixing([fine, coarse])
    torch.testing.assert_close(found[0], high)
    torch.testing.assert_close(found[1], low)
    assert [tuple(each.shape[1:]) for each in found] == [(8, 8, 8), (8, 4, 4)]
    assert all(0.4 < float(each.std()) < 2.5 for each in found)


def test_a_coarse_change_reaches_the_finest_scale_and_not_the_other_way():
    mixing = RandomMixing([3, 5], 8, torch.Generator().manual_seed(0))
    fine, coarse = torch.randn(1, 3, 8, 8), torch.randn(1, 5, 4, 4)
    before, moved, refined = mixing([fine, coarse]), mixing([fine, coarse + 1]), mixing([fine + 1, coarse])
    assert not torch.equal(before[0], moved[0])
    assert torch.equal(before[1], refined[1])


def test_there_is_a_head_for_each_map_of_each_network():
    pyramid = FunctionBackbone(lambda x: [x, x[:, :, ::2, ::2]], side=16)
    settings = ProjectedDiscriminator((NETWORK, pyramid), mixed_channels=16, width=16)
    logits = settings.build((1, 8, 8), 0)(torch.rand(3, 1, 8, 8))
    assert [tuple(entry.shape) for entry in logits] == [
        *((3, 1, side, side) for side in (4, 4, 2, 1)),
        *((3, 1, side, side) for side in (4, 4)),
    ]


def test_a_feature_network_may_look_through_the_networks():
    """One with `maps` gets them, as the teacher's encoder does."""

    class Through:
        def maps(self, networks, images):
            return [networks.teacher(images)]

    networks = Networks(torch.nn.Linear(1, 1), teacher=lambda images: images.expand(-1, 6, -1, -1))
    built = ProjectedDiscriminator((Through(),), mixed_channels=8, width=8).build((1, 8, 8), 0, networks)
    assert built.mixings[0].channel_0.shape == (8, 6, 1, 1)
    assert built(torch.rand(2, 1, 8, 8), None, networks)[0].shape == (2, 1, 4, 4)


def test_the_teachers_encoder_serves_as_a_feature_network():
    teacher = DiffusionModel(
        DDPMpp((1, 8, 8), channels=8, channel_mult=(1, 2), blocks=1, attention=()), shape=(1, 8, 8)
    )
    networks = Networks(teacher, teacher=random_weights(teacher))
    network = ProjectedDiscriminator((TeacherEncoder(),), mixed_channels=8, width=8).build((1, 8, 8), 0, networks)
    images = torch.rand(2, 1, 8, 8, requires_grad=True)
    logits = network(images, None, networks)
    assert [tuple(entry.shape) for entry in logits] == [(2, 1, 4, 4), (2, 1, 4, 4)]
    sum(entry.sum() for entry in logits).backward()
    assert float(images.grad.abs().sum()) > 0


def test_gradients_reach_the_images_and_the_heads_only():
    network, images = built(), torch.rand(2, 1, 8, 8, requires_grad=True)
    sum(entry.sum() for entry in network(images)).backward()
    assert float(images.grad.abs().min()) > 0
    assert all(parameter.grad is not None for parameter in network.heads.parameters())


def test_convolutions_have_spectral_norm_one():
    """After some power iterations the largest singular value of each kernel as a matrix is 1."""
    head = LogitHead(16, (16, 16), 16, 0).train()
    for _ in range(50):
        head(torch.randn(1, 16, 16, 16))
    for module in (*head.body, head.logit):
        if isinstance(module, torch.nn.Conv2d):
            assert float(torch.linalg.matrix_norm(module.weight.detach().flatten(1), 2)) == pytest.approx(1, abs=0.05)


def test_a_label_moves_its_own_logits_and_none_moves_nothing():
    network, images = built(num_classes=3).eval(), torch.rand(2, 1, 8, 8)
    without, unknown, first, second = (
        network(images, labels)
        for labels in (None, torch.tensor([-1, -1]), torch.tensor([0, -1]), torch.tensor([1, -1]))
    )
    for a, b, c, d in zip(without, unknown, first, second, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a[1], c[1])
        assert not torch.equal(c[0], d[0])
        assert not torch.equal(a[0], c[0])


@pytest.mark.slow
def test_it_separates_two_sets_in_a_few_steps():
    """Horizontal against vertical stripes at random phases: half of what it says is right before, nearly all after."""
    network = built()
    optimizer = torch.optim.RAdam(network.parameters(), lr=2e-3, betas=(0.5, 0.9))
    generator = torch.Generator().manual_seed(0)

    def stripes(n):
        phase = torch.rand(n, 1, 1, 1, generator=generator) * 6
        lines = torch.sin(torch.arange(8.0)[:, None] + phase).expand(n, 1, 8, 8)
        return lines, lines.transpose(2, 3)

    def accuracy():
        with torch.no_grad():
            scores = [sum(entry.flatten(1).mean(1) for entry in network(images)) for images in stripes(64)]
        return float((scores[0] > 0).float().mean() + (scores[1] < 0).float().mean()) / 2

    for _ in range(30):
        real, fake = stripes(32)
        optimizer.zero_grad()
        hinge_discriminator(network(real), network(fake)).backward()
        optimizer.step()
    assert accuracy() > 0.95


def test_vectors_and_odd_widths_are_sentences():
    with pytest.raises(ValueError, match=r"use ctm\.discriminators\.MLPDiscriminator"):
        ProjectedDiscriminator((NETWORK,)).build((2,), 0)
    with pytest.raises(ValueError, match="width must be a multiple of 8, got 12"):
        ProjectedDiscriminator((NETWORK,), width=12)
    with pytest.raises(ValueError, match="at least one feature network"):
        ProjectedDiscriminator(())
