"""Official names there and back, and what the maps say of state dicts that do not fit. That the weights then compute what
the official networks compute is shown in tests/parity/test_networks.py."""

import contextlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ctm.networks import ADM, MLP, DDPMpp, DhariwalUNet, NCSNpp
from ctm.networks.description import build
from ctm.teachers.official import from_official, recognise, to_official
from ctm.teachers.official_names import from_our_order, to_our_order

from ..conftest import mostly_slow, random_weights

SMALL = {"channels": 8, "channel_mult": (1, 2), "blocks": 1, "attention": (4,)}
NETWORKS = {
    "ddpmpp": lambda: DDPMpp((3, 8, 8), 5, augment_dim=9, **SMALL),
    "ddpmpp teacher": lambda: DDPMpp((1, 8, 8), s_embedding=False, channels=8, channel_mult=(2, 2, 2), blocks=2),
    "ddpmpp fourier": lambda: DDPMpp((3, 8, 8), level_features="fourier", features_mult=3, embedding_mult=2, **SMALL),
    "ddpmpp 1,3,3,1": lambda: DDPMpp((3, 8, 8), resample_filter=(1, 3, 3, 1), **SMALL),
    "ncsnpp": lambda: NCSNpp((3, 8, 8), 5, **SMALL),
    "dhariwal": lambda: DhariwalUNet((3, 8, 8), 5, augment_dim=4, head_channels=4, **SMALL),
    "dhariwal narrow": lambda: DhariwalUNet((4, 8, 8), head_channels=64, s_embedding=False, **SMALL),
    "adm": lambda: ADM((3, 8, 8), 5, head_channels=4, **SMALL),
    "adm one level": lambda: ADM((3, 8, 8), channels=8, channel_mult=(2,), blocks=2, attention=(8,), head_channels=8),
    "adm deep": lambda: ADM(
        (3, 8, 8), s_embedding=False, channels=8, channel_mult=(0.5, 1, 2), blocks=2, attention=(8, 2), head_channels=2
    ),
}
ORDERS = ("three-heads-dim", "heads-three-dim", "heads-dim-three")


@pytest.mark.parametrize("order", ORDERS[:2])
@pytest.mark.parametrize("name", NETWORKS)
def test_round_trip(name, order):
    """Ours to official, recognised from that alone, and back: the same network, to the bit."""
    network = random_weights(NETWORKS[name]()).eval()
    order = order if isinstance(network, ADM) else None
    official = to_official(network, qkv_order=order)
    heads = network.init_args.get("head_channels", None if isinstance(network, DDPMpp) else 64)
    found = recognise(official, image_size=8, head_channels=heads, qkv_order=order)
    assert found.missing == ()
    again = build({"class_path": found.class_path, "init_args": found.init_args})
    again.load_state_dict(from_official(official, again, qkv_order=found.qkv_order))
    assert isinstance(again, type(network))
    x, t, s = torch.randn(2, *network.init_args["shape"]), torch.tensor([0.3, 2.0]), torch.tensor([0.1, 0.5])
    assert torch.equal(network(x, t, s), again.eval()(x, t, s))
    second = to_official(again, qkv_order=order)
    assert second.keys() == official.keys()
    assert all(torch.equal(second[key], official[key]) for key in official)


@given(
    heads=st.integers(1, 4), dim=st.integers(1, 3), order=st.sampled_from(ORDERS), tail=st.sampled_from([(), (2, 1, 1)])
)
@settings(max_examples=30)
def test_orders_name_the_axes_from_slowest_to_fastest(heads, dim, order, tail):
    """Channel (i of three, h, d) of ours is the official channel at the position that the order's axes give."""
    tensor = torch.randn(3 * heads * dim, *tail)
    ours = to_our_order(tensor, heads, order)
    sizes = {"three": 3, "heads": heads, "dim": dim}
    for i in range(3):
        for h in range(heads):
            for d in range(dim):
                place = 0
                for axis in order.split("-"):
                    place = place * sizes[axis] + {"three": i, "heads": h, "dim": d}[axis]
                assert torch.equal(ours[(i * heads + h) * dim + d], tensor[place])
    assert torch.equal(from_our_order(ours, heads, order), tensor)


def test_what_names_cannot_tell_is_asked_for():
    found = recognise(to_official(NETWORKS["adm"](), qkv_order="heads-three-dim"))
    assert found.missing == ("image_size", "head_channels", "qkv_order")
    assert "shape" not in found.init_args
    assert recognise(to_official(NETWORKS["dhariwal"]())).missing == ("head_channels",)
    bare = {key: v for key, v in to_official(NETWORKS["ncsnpp"]()).items() if not key.endswith("resample_filter")}
    assert recognise(bare).missing == ("resample_filter",)
    found = recognise(bare, resample_filter=(1, 3, 3, 1))
    network = build({"class_path": found.class_path, "init_args": found.init_args})
    network.load_state_dict(from_official(bare, network))
    with pytest.raises(ValueError, match="do not tell the order of its qkv channels: give qkv_order"):
        to_official(NETWORKS["adm"]())


@pytest.mark.parametrize("name", ["ddpmpp", "ncsnpp", "dhariwal", "adm"])
def test_missing_and_unexpected_keys_are_named(name):
    network = NETWORKS[name]()
    order = "three-heads-dim" if name == "adm" else None
    state = to_official(network, qkv_order=order, prefix="")
    gone = next(key for key in state if key.endswith("weight"))
    without = {key: value for key, value in state.items() if key != gone}
    with pytest.raises(ValueError, match=f"are not of this {type(network).__name__}: missing key {gone}$"):
        from_official(without, network, qkv_order=order)
    with pytest.raises(ValueError, match=r"missing key .*; unexpected keys another, more$"):
        from_official(without | {"more": state[gone], "another": state[gone]}, network, qkv_order=order)
    with pytest.raises(ValueError, match=f"other shape or filter in {gone}"):
        from_official(state | {gone: state[gone][:1]}, network, qkv_order=order)


def test_other_state_dicts_are_refused_with_a_sentence():
    with pytest.raises(ValueError, match=r"no network known here.*it has 0.bias, 0.weight"):
        recognise(torch.nn.Sequential(torch.nn.Linear(2, 2)).state_dict())
    with pytest.raises(ValueError, match="it has no keys at all"):
        recognise({})
    with pytest.raises(ValueError, match=r"other shape or filter in .*enc\.4x4_down\.conv0\.resample_filter"):
        from_official(to_official(NETWORKS["ddpmpp 1,3,3,1"]()), DDPMpp((3, 8, 8), **SMALL))
    with pytest.raises(ValueError, match="MLP has no official form"):
        to_official(MLP((2,)))
    with pytest.raises(ValueError, match="EDM's networks have the qkv order heads-dim-three, not three-heads-dim"):
        to_official(NETWORKS["ddpmpp"](), qkv_order="three-heads-dim")


def test_truncated_and_foreign_forms_are_refused_with_a_sentence():
    edm = to_official(NETWORKS["ddpmpp"](), prefix="")
    with pytest.raises(ValueError, match=r"one of EDM's networks, in a form not supported.*map_layer0\.weight"):
        recognise({key: value for key, value in edm.items() if not key.startswith("map_layer0")})
    adm = to_official(NETWORKS["adm"](), qkv_order="three-heads-dim")
    with pytest.raises(ValueError, match=r"looks like the ADM U-Net, but it lacks out\.2\.weight"):
        recognise({key: value for key, value in adm.items() if key != "out.2.weight"})
    with pytest.raises(ValueError, match="not supported here: it resamples by learned convolutions"):
        recognise(adm | {"input_blocks.2.0.op.weight": torch.zeros(8, 8, 3, 3)})
    with pytest.raises(ValueError, match="it has no scale-shift norms"):
        recognise(adm | {"input_blocks.1.0.emb_layers.1.weight": torch.zeros(8, 32)})
    with pytest.raises(ValueError, match="it gives 6 channels for 3"):
        recognise(adm | {"out.2.weight": torch.zeros(6, 8, 3, 3)})
    cut = {key: value for key, value in adm.items() if not key.startswith(("output_blocks", "middle_block"))}
    with pytest.raises(ValueError, match="looks like the ADM U-Net"):
        recognise(cut)


@pytest.mark.parametrize("name", mostly_slow(NETWORKS, "ddpmpp", "ncsnpp", "dhariwal", "adm"))
def test_any_cut_of_a_state_dict_gives_a_sentence(name):
    """Without any one tensor, or ending early, a state dict is refused by ValueError and by nothing else."""
    network = NETWORKS[name]()
    order = "three-heads-dim" if isinstance(network, ADM) else None
    state = to_official(network, qkv_order=order)
    names = [key for key in state if not key.endswith("resample_filter")]
    cuts = [set(state) - {key} for key in names] + [set(names[:end]) for end in range(0, len(names), 7)]
    for kept in cuts:
        cut = {key: value for key, value in state.items() if key in kept}
        with contextlib.suppress(ValueError):
            recognise(cut, image_size=8, head_channels=4, qkv_order=order)
        with pytest.raises(ValueError, match="are not of this"):
            from_official(cut, network, qkv_order=order)


def test_gradients_and_averages_go_the_same_way():
    network = NETWORKS["adm"]()
    half = {key: value.half() for key, value in network.state_dict().items()}
    official = to_official(network, half, qkv_order="heads-three-dim")
    assert {value.dtype for value in official.values()} == {torch.float16}
    del half["first.weight"]
    with pytest.raises(ValueError, match=r"not of this ADM: missing key first\.weight"):
        to_official(network, half, qkv_order="heads-three-dim")
