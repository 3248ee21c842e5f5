import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ctm import DiffusionModel, TrajectoryModel
from ctm.networks import ADM, MLP, DDPMpp, DhariwalUNet, DiT, NCSNpp
from ctm.networks.blocks import Attention, BlockStyle, Resample

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


def test_ddpmpp_refuses_a_size_that_its_patches_do_not_divide():
    with pytest.raises(ValueError, match="2 levels over patches of 4 needs image sides divisible by 8, got 28×28"):
        DDPMpp((1, 28, 28), channels=8, channel_mult=(1, 1), patch=4)


BUILDERS = {
    "mlp": lambda **kw: MLP((1, 8, 8), 5, width=24, blocks=2, embedding=16, **kw),
    "ddpmpp": lambda **kw: DDPMpp((1, 8, 8), 5, channels=8, channel_mult=(1, 2), blocks=1, attention=(4,), **kw),
    "patches": lambda **kw: DDPMpp(
        (1, 8, 8), 5, channels=8, channel_mult=(1, 2), blocks=1, attention=(2,), patch=2, **kw
    ),
    "ncsnpp": lambda **kw: NCSNpp((1, 8, 8), 5, channels=8, channel_mult=(1, 2, 2), blocks=1, attention=(4,), **kw),
    "dhariwal": lambda **kw: DhariwalUNet(
        (1, 8, 8), 5, channels=8, channel_mult=(1, 2), blocks=1, attention=(4,), head_channels=4, **kw
    ),
    "adm": lambda **kw: ADM(
        (1, 8, 8), 5, channels=8, channel_mult=(1, 2), blocks=1, attention=(4,), head_channels=4, **kw
    ),
    "dit": lambda **kw: DiT((1, 8, 8), 5, width=24, blocks=2, heads=3, embedding=16, **kw),
}
U_NETS = {name: builder for name, builder in BUILDERS.items() if name not in ("mlp", "dit")}


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


@pytest.mark.parametrize("name", U_NETS)
def test_a_fresh_network_ignores_s_and_gives_nearly_nothing(name):
    network = U_NETS[name]().eval()
    x, t, s = image_arguments(2, 1, 8)
    out = network(x, t, s)
    assert torch.equal(out, network(x, t, None))
    assert out.abs().max() < 1e-2
    random_weights(network)
    assert not torch.equal(network(x, t, s), network(x, t, None))
    assert not torch.equal(network(x, t, s), network(x, t, s / 2))


@pytest.mark.parametrize("name", ["ddpmpp", "ncsnpp", "dhariwal"])
def test_augmentation_labels(name):
    """They act, zeros are as good as none, and a network without them ignores them."""
    network = random_weights(U_NETS[name](augment_dim=6)).eval()
    x, t, s = image_arguments(2, 1, 8)
    plain = network(x, t, s)
    assert torch.equal(plain, network(x, t, s, augment=torch.zeros(2, 6)))
    assert not torch.equal(plain, network(x, t, s, augment=torch.ones(2, 6)))
    without = random_weights(U_NETS[name]()).eval()
    assert torch.equal(without(x, t, s), without(x, t, s, augment=torch.ones(2, 6)))


def test_ddpmpp_keeps_its_parameter_names():
    """Saved models depend on them."""
    network = DDPMpp((1, 8, 8), 3, channels=8, channel_mult=(1, 2), blocks=1, attention=(4,))
    names = set(network.state_dict())
    assert {
        "t_embedding.first.weight",
        "s_embedding.second.bias",
        "label_embedding.linear.weight",
        "first.weight",
        "down.1.norm_in.weight",
        "down.2.conv_in.weight",
        "down.2.attention.qkv.weight",
        "down.2.attention.norm.bias",
        "middle.0.attention.out.bias",
        "up.0.shortcut.weight",
        "up.0.t_affine.weight",
        "up.0.s_affine.weight",
        "up.0.norm_out.weight",
        "up.0.conv_out.bias",
        "norm.weight",
        "last.bias",
    } <= names
    assert not any("resample" in name for name in names)


@pytest.mark.parametrize("taps", [(1, 1), (2, 2), (1, 3, 3, 1), (1, 2), (1, 4, 6, 6, 4, 1)])
def test_resampling_is_the_filter_along_each_axis(taps):
    """Down: out[i] = Σ f[k]·x[2i + k − p]/Σf; up: out[2i + k − p] += 2·f[k]·x[i]/Σf; zero outside, one axis after another."""
    x = torch.randn(2, 3, 8, 12, dtype=torch.float64)
    weights, pad = torch.tensor(taps, dtype=torch.float64) / sum(taps), (len(taps) - 1) // 2

    def matrix(size: int) -> torch.Tensor:
        down = torch.zeros(size // 2, size, dtype=torch.float64)
        for i in range(size // 2):
            for k, weight in enumerate(weights):
                if 0 <= 2 * i + k - pad < size:
                    down[i, 2 * i + k - pad] += weight
        return down

    down = matrix(8) @ x @ matrix(12).T
    torch.testing.assert_close(Resample("down", taps).double()(x), down, rtol=1e-6, atol=1e-6)
    up = 4 * matrix(16).T @ x @ matrix(24)
    torch.testing.assert_close(Resample("up", taps).double()(x), up, rtol=1e-6, atol=1e-6)


def test_the_published_size():
    """296 million parameters, as Dhariwal and Nichol (table 10) give for their ImageNet-64 model."""
    with torch.device("meta"):
        sizes = [
            sum(p.numel() for p in net((3, 64, 64), 1000, s_embedding=False).parameters())
            for net in (ADM, DhariwalUNet)
        ]
    assert [round(size / 1e6) for size in sizes] == [296, 296]


def test_attention_is_softmax_of_qk_over_pixels():
    style = BlockStyle(8, False, False, 0.5, 4, 1e-6, True)
    attention = random_weights(Attention(8, 2, style)).double()
    x = torch.randn(2, 8, 3, 4, dtype=torch.float64)
    q, k, v = attention.qkv(attention.norm(x)).reshape(2, 3, 2, 4, 12).unbind(1)
    weights = (torch.einsum("nhdp,nhdq->nhpq", q, k) / 2).softmax(dim=-1)
    mixed = torch.einsum("nhpq,nhdq->nhdp", weights, v).reshape(x.shape)
    torch.testing.assert_close(attention(x), 0.5 * (x + attention.out(mixed)))


def test_bad_settings_are_refused_with_a_sentence():
    with pytest.raises(ValueError, match=r"an even number of entries, got \[1, 2, 1\]"):
        DDPMpp((1, 8, 8), channels=8, resample_filter=(1, 2, 1))
    with pytest.raises(ValueError, match="encoder \"standard\" or \"residual\", got 'positional' and 'skip'"):
        DDPMpp((1, 8, 8), channels=8, encoder="skip")
    with pytest.raises(ValueError, match="3 attention heads do not divide 16 channels"):
        ADM((1, 8, 8), channels=16, channel_mult=(1,), attention=(8,), head_channels=5)
    with pytest.raises(ValueError, match="ADM with 4 levels needs image sides divisible by 8, got 12×12"):
        ADM((3, 12, 12), channels=8)


@pytest.mark.parametrize("name", ["ddpmpp", "ncsnpp", "dhariwal", "adm", "dit"])
def test_height_and_width_may_differ(name):
    build = {
        "ddpmpp": lambda shape: DDPMpp(shape, channels=8, channel_mult=(1, 2), blocks=1, attention=(4,)),
        "ncsnpp": lambda shape: NCSNpp(shape, channels=8, channel_mult=(1, 2), blocks=1, attention=(4,)),
        "dhariwal": lambda shape: DhariwalUNet(
            shape, channels=8, channel_mult=(1, 2), blocks=1, attention=(4,), head_channels=4
        ),
        "adm": lambda shape: ADM(shape, channels=8, channel_mult=(1, 2), blocks=1, attention=(4,), head_channels=4),
        "dit": lambda shape: DiT(shape, width=24, blocks=1, heads=3, embedding=16),
    }[name]
    network = random_weights(build((2, 8, 12))).eval()
    x, t, s = torch.randn(2, 2, 8, 12), torch.rand(2) + 0.1, torch.rand(2) * 0.1
    assert network(x, t, s).shape == x.shape
    assert [found.dim() for found in network.encode(x, t)] == [4] * len(network.encode(x, t))
