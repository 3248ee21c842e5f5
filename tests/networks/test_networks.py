import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ctm import DiffusionModel, TrajectoryModel
from ctm.networks import MLP, DDPMpp

from ..conftest import random_weights


def image_arguments(n: int, channels: int, size: int):
    return torch.randn(n, channels, size, size), torch.rand(n) + 0.1, torch.rand(n) * 0.1 + 0.01


@pytest.mark.parametrize(
    ("channels", "size", "mult"),
    [(1, 8, (1, 2)), (3, 16, (1, 2)), (1, 28, (1, 2, 2)), (4, 32, (1, 1)), (3, 64, (1, 1, 2))],
)
@pytest.mark.parametrize("num_classes", [0, 7])
def test_ddpmpp_takes_any_size_and_channel_count(channels, size, mult, num_classes):
    network = DDPMpp((channels, size, size), num_classes, channels=8, channel_mult=mult, blocks=1, attention=(16, 14))
    x, t, s = image_arguments(2, channels, size)
    assert network(x, t, s).shape == x.shape


def test_ddpmpp_refuses_a_size_that_the_levels_do_not_divide():
    with pytest.raises(ValueError, match="needs image sides divisible by 4, got 30×30"):
        DDPMpp((1, 30, 30), channels=8, channel_mult=(1, 1, 1))


BUILDERS = {
    "mlp": lambda **kw: MLP((1, 8, 8), 5, width=24, blocks=2, embedding=16, **kw),
    "ddpmpp": lambda **kw: DDPMpp((1, 8, 8), 5, channels=8, channel_mult=(1, 2), blocks=1, attention=(4,), **kw),
}


@pytest.mark.parametrize("name", BUILDERS)
def test_every_parameter_takes_part(name):
    network = random_weights(BUILDERS[name]())
    x, t, s = image_arguments(3, 1, 8)
    network(x, t, s, torch.tensor([0, 4, -1])).square().sum().backward()
    unused = [key for key, p in network.named_parameters() if p.grad is None or not bool(p.grad.abs().sum() > 0)]
    assert unused == []


@pytest.mark.parametrize("name", BUILDERS)
def test_samples_do_not_mix(name):
    network = random_weights(BUILDERS[name]())
    x, t, s = image_arguments(4, 1, 8)
    labels = torch.tensor([0, 1, -1, 4])
    together = network(x, t, s, labels)
    alone = torch.cat([network(x[i : i + 1], t[i : i + 1], s[i : i + 1], labels[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", BUILDERS)
def test_a_fresh_student_copied_from_its_teacher_is_its_teacher(name):
    """The s branch starts at zero: g(x, t, s) = D(x, t) for every s."""
    teacher = random_weights(BUILDERS[name](s_embedding=False))
    student = BUILDERS[name]()
    missing, unexpected = student.load_state_dict(teacher.state_dict(), strict=False)
    assert unexpected == []
    assert missing
    assert all("s_affine" in key or "s_embedding" in key for key in missing)
    x, t, s = image_arguments(2, 1, 8)
    a = DiffusionModel(teacher, shape=(1, 8, 8), num_classes=5)
    b = TrajectoryModel(student, shape=(1, 8, 8), num_classes=5)
    assert torch.equal(a.denoise(x, t), b.g(x, t, s))


@pytest.mark.parametrize("name", BUILDERS)
def test_dropout_acts_only_in_training(name):
    network = random_weights(BUILDERS[name](dropout=0.5))
    x, t, s = image_arguments(2, 1, 8)
    network.train()
    assert not torch.equal(network(x, t, s), network(x, t, s))
    network.eval()
    assert torch.equal(network(x, t, s), network(x, t, s))


def test_arguments_are_recorded_for_config_json():
    assert MLP([2], width=8).init_args == {"shape": [2], "width": 8}
    assert DDPMpp((1, 8, 8), 3, channels=8, channel_mult=(1,)).init_args == {
        "shape": [1, 8, 8],
        "num_classes": 3,
        "channels": 8,
        "channel_mult": [1],
    }


@settings(max_examples=15)
@given(dimensions=st.lists(st.integers(1, 4), min_size=1, max_size=3))
def test_mlp_takes_any_shape(dimensions):
    network = MLP(dimensions, width=8, blocks=1, embedding=8)
    x = torch.randn(3, *dimensions)
    assert network(x, torch.ones(3), torch.ones(3)).shape == x.shape
