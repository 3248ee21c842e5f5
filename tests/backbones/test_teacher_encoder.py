import pytest
import torch

from ctm import DiffusionModel
from ctm.backbones import TeacherEncoder
from ctm.networks import ADM, MLP, DDPMpp, DhariwalUNet, NCSNpp
from ctm.objectives import FeatureDistance, Matching, Networks
from ctm.teachers import GaussianMixture
from ctm.training.ema import frozen_copy

from ..conftest import random_weights

SMALL = {"channels": 16, "channel_mult": (1, 2), "blocks": 1, "attention": (4,)}
NETWORKS = {
    "DDPMpp": lambda **more: DDPMpp((1, 8, 8), 3, **SMALL, **more),
    "NCSNpp": lambda **more: NCSNpp((1, 8, 8), 3, **SMALL, **more),
    "DhariwalUNet": lambda **more: DhariwalUNet((1, 8, 8), 3, head_channels=8, **SMALL, **more),
    "ADM": lambda **more: ADM((1, 8, 8), 3, **{**SMALL, "channels": 32}, head_channels=8, **more),
}


def teacher(network) -> DiffusionModel:
    return random_weights(DiffusionModel(network, shape=(1, 8, 8), num_classes=3)).requires_grad_(False).eval()


@pytest.mark.parametrize("name", NETWORKS)
def test_a_unets_maps_are_the_last_of_each_level(name):
    """Finest first; and what the network itself computes: seen by a hook on the blocks that end a level."""
    model, images = teacher(NETWORKS[name](s_embedding=False)), torch.rand(2, 1, 8, 8) * 2 - 1
    channels = 32 if name == "ADM" else 16
    maps = TeacherEncoder(0.5).maps(Networks(None, teacher=model), images)
    assert [tuple(found.shape) for found in maps] == [(2, channels, 8, 8), (2, 2 * channels, 4, 4)]
    seen = []
    hooks = [model.network.down[i].register_forward_hook(lambda _, __, out: seen.append(out)) for i in (0, -1)]
    model.denoise(images, torch.full((2,), 0.5))
    for hook in hooks:
        hook.remove()
    for found, expected in zip(maps, seen, strict=True):
        torch.testing.assert_close(found, expected)


def test_an_mlps_maps_are_its_blocks():
    model = teacher(MLP((1, 8, 8), 3, width=12, blocks=3, embedding=8, s_embedding=False))
    maps = TeacherEncoder().maps(Networks(None, teacher=model), torch.rand(2, 1, 8, 8))
    assert [tuple(found.shape) for found in maps] == [(2, 12, 1, 1)] * 3


def test_the_distance_is_one_and_trains_the_student_only():
    """Zero for equal images, symmetric, growing with noise; matching's gradient reaches the student through the teacher."""
    model = teacher(NETWORKS["DDPMpp"](s_embedding=False))
    distance, networks = FeatureDistance((TeacherEncoder(0.2),)), Networks(None, teacher=model)
    a, noise = torch.rand(2, 4, 1, 8, 8) * 2 - 1
    assert distance.between(networks, a, a).abs().max().item() == 0
    torch.testing.assert_close(distance.between(networks, a, noise), distance.between(networks, noise, a))
    grown = torch.stack([distance.between(networks, a, a + level * noise) for level in (0.05, 0.2, 1.0)])
    assert bool((grown.diff(dim=0) > 0).all())

    from ctm import TrajectoryModel

    student = random_weights(TrajectoryModel(NETWORKS["DDPMpp"](), shape=(1, 8, 8), num_classes=3))
    objective = Matching(distance=distance)
    draw = objective.draw(student, a, torch.Generator().manual_seed(0))
    objective(Networks(student, frozen_copy(student), model), a, None, draw).mean().backward()
    assert float(student.network.first.weight.grad.abs().sum()) > 0
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, "there is no teacher"),
        (GaussianMixture(torch.zeros(1, 2), 1.0, torch.ones(1)), "GaussianMixture has none"),
    ],
)
def test_without_an_encoder_it_is_a_sentence(given, message):
    with pytest.raises(ValueError, match=message):
        TeacherEncoder().maps(Networks(None, teacher=given), torch.zeros(2, 2))


def test_other_uses_are_refused():
    with pytest.raises(ValueError, match="level is a noise level above 0, got 0"):
        TeacherEncoder(0.0)
    with pytest.raises(ValueError, match="there is no teacher"):
        FeatureDistance((TeacherEncoder(),))(torch.zeros(2, 1, 8, 8), torch.zeros(2, 1, 8, 8))
