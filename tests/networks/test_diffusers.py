"""DiffusersNetwork against the modules of diffusers themselves."""

import copy
import json

import pytest
import torch

from ctm import TrajectoryModel, load_model
from ctm.betas import BetaSchedule
from ctm.networks import DiffusersNetwork
from ctm.networks.description import build, describe
from ctm.preconditioning import VariancePreserving
from tests.diffusers_models import CONDITIONAL, DIT, UNET, made_random

T = torch.tensor([1.0, 250.25, 900.5])
Y = torch.tensor([2, -1, 0])


def specification(kind, change=None, **more):
    config = {"UNet2DModel": UNET, "UNet2DConditionModel": CONDITIONAL, "DiTTransformer2DModel": DIT}[kind]
    own = {
        "UNet2DConditionModel": {"arrays": {"text": [5, 12]}, "knows_empty": True},
        "DiTTransformer2DModel": {"num_classes": 10},
    }
    channels = 1 if kind == "UNet2DModel" else 4
    return {
        "shape": (channels, 8, 8),
        "kind": kind,
        "config": {**config, **(change or {})},
        **own.get(kind, {}),
        **more,
    }


CASES = {
    "unet": specification("UNet2DModel"),
    "unet-classes": specification("UNet2DModel", {"num_class_embeds": 4}, num_classes=3, null_class=3),
    "unet-variance": specification("UNet2DModel", {"out_channels": 2}),
    "text": specification("UNet2DConditionModel"),
    "dit": specification("DiTTransformer2DModel"),
}


def condition_for(name):
    if name == "text":
        there = torch.tensor([True, False, True])
        return {"text": torch.randn(3, 5, 12, generator=torch.Generator().manual_seed(1)), "text_present": there}
    return Y if name in ("unet-classes", "dit") else None


def by_hand(network, name, x, t, condition):
    """The module called as diffusers' own documentation calls it."""
    if name == "text":
        text = torch.where(condition["text_present"][:, None, None], condition["text"], network.empty_text)
        return network.module(x, t, text).sample
    if name == "unet-classes":
        return network.module(x, t, torch.tensor([2, 3, 0])).sample
    if name == "dit":
        return network.module(x, t, torch.tensor([2, 10, 0])).sample
    return network.module(x, t).sample


def network_for(name):
    network = made_random(DiffusersNetwork(**CASES[name]))
    if name == "text":
        torch.nn.init.normal_(network.empty_text, generator=torch.Generator().manual_seed(2))
    return network


@pytest.mark.parametrize("name", CASES)
def test_the_call_is_the_modules(name):
    """Fractional timesteps, labels and texts that are there and absent, the first C channels of a learned variance."""
    network, condition = network_for(name), condition_for(name)
    x = torch.randn(3, *CASES[name]["shape"])
    with torch.no_grad():
        found, expected = network(x, T, None, condition), by_hand(network, name, x, T, condition)
    assert torch.equal(found, expected[:, : x.shape[1]])
    assert expected.shape[1] == (2 if name in ("unet-variance", "dit") else 1) * x.shape[1]


@pytest.mark.parametrize("name", CASES)
def test_a_student_is_its_teacher_for_every_s(name):
    """The branch of s starts at zero, and everything else has the teacher's names; trained, it matters."""
    teacher, condition = network_for(name), condition_for(name)
    student = DiffusersNetwork(**CASES[name], student=True, guidance_embedding=True).eval()
    left = student.load_state_dict(teacher.state_dict(), strict=False)
    assert not left.unexpected_keys
    assert all(name.split(".")[-2].startswith(("s_", "guidance_")) for name in left.missing_keys)
    x = torch.randn(3, *CASES[name]["shape"])
    with torch.no_grad():
        expected = teacher(x, T, None, condition)
        assert torch.allclose(student(x, T, T / 3, condition), expected, atol=1e-6)
        made_random(student)
        near, far = (student(x, T, s, condition) for s in (T / 2, T / 3))
        copied = copy.deepcopy(student)(x, T, T / 2, condition)
    assert float((near - far).abs().max()) > 1e-4
    assert torch.equal(copied, near)


@pytest.mark.parametrize("name", CASES)
def test_a_second_output_is_zero_at_first_and_the_first_is_the_teachers(name):
    """Also where the teacher's last layer gives a variance beside, left out here, and where it gives a patch's pixels."""
    teacher, condition = network_for(name), condition_for(name)
    student = DiffusersNetwork(**CASES[name], student=True, outputs=2)
    left = student.load_state_dict(student.begin_from(teacher.state_dict()), strict=False)
    assert left.unexpected_keys == []
    assert all("s_" in key for key in left.missing_keys)
    x = torch.randn(3, *CASES[name]["shape"])
    with torch.no_grad():
        found, expected = student.eval()(x, T, T / 2, condition), teacher(x, T, None, condition)
    torch.testing.assert_close(found[:, : x.shape[1]], expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(found[:, x.shape[1] :], torch.zeros_like(x))


def test_a_learned_row_for_each_timestep_is_asked_at_both_neighbours():
    config = {"time_embedding_type": "learned", "num_train_timesteps": 20}
    network = made_random(DiffusersNetwork(**specification("UNet2DModel", config)))
    student = DiffusersNetwork(**specification("UNet2DModel", config), student=True)
    assert not student.load_state_dict(network.state_dict(), strict=False).unexpected_keys
    x, t = torch.randn(3, 1, 8, 8), torch.tensor([0.0, 6.25, 19.0])
    with torch.no_grad():
        low, high = (network.module(x, torch.tensor(whole)).sample for whole in ([0, 6, 19], [0, 7, 19]))
        share = torch.tensor([0, 0.25, 0])[:, None, None, None]
        expected = (1 - share) * low + share * high
        assert torch.allclose(network(x, t), expected, atol=1e-6)
        assert torch.allclose(student.eval()(x, t, t / 2), expected, atol=1e-6)


def test_a_row_without_a_label_is_refused_where_no_class_stands_for_none():
    network = DiffusersNetwork(**specification("UNet2DModel", {"num_class_embeds": 4}, num_classes=4))
    x = torch.randn(3, 1, 8, 8)
    with pytest.raises(ValueError, match="has no null class, so each sample needs a label"):
        network(x, T)
    with pytest.raises(ValueError, match="has no null class, so each sample needs a label"):
        network(x, T, None, Y)
    assert network(x, T, None, Y.abs()).shape == x.shape


def test_a_row_without_a_text_is_refused_where_no_empty_prompt_is_known():
    network = DiffusersNetwork(**{**CASES["text"], "knows_empty": False})
    with pytest.raises(ValueError, match="has no embedded empty prompt, so each sample needs a text"):
        network(torch.randn(3, 4, 8, 8), T, None, condition_for("text"))


def test_the_mask_of_a_text_leaves_tokens_out():
    network = network_for("text")
    x, text = torch.randn(2, 4, 8, 8), torch.randn(2, 5, 12)
    mask = torch.tensor([[True] * 3 + [False] * 2, [True] * 5])
    changed = text.clone()
    changed[0, 3:] = 7.0
    with torch.no_grad():
        a, b = (network(x, T[:2], None, {"text": t, "text_mask": mask}) for t in (text, changed))
        c = network(x, T[:2], None, {"text": changed})
    assert torch.allclose(a, b, atol=1e-6)
    assert float((a - c)[0].abs().max()) > 1e-4


@pytest.mark.parametrize("name", ["unet", "text", "dit"])
def test_a_model_around_it_is_kept_in_a_directory(name, tmp_path):
    network = build(describe(DiffusersNetwork(**CASES[name], student=True)))
    inner = VariancePreserving("v", BetaSchedule())
    shape, classes = CASES[name]["shape"], CASES[name].get("num_classes", 0)
    model = TrajectoryModel(
        made_random(network), shape=shape, num_classes=classes, inner=inner, sigma_min=0.01, sigma_max=100
    )
    model.save_pretrained(tmp_path)
    found = load_model(tmp_path)
    x, t, s = torch.randn(3, *shape), torch.tensor([0.5, 3.0, 90.0]), torch.tensor([0.02, 2.0, 1.0])
    with torch.no_grad():
        assert torch.equal(found.jump(x, t, s, condition_for(name)), model.eval().jump(x, t, s, condition_for(name)))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"shape": (3, 8, 8)}, "takes 1 channels and gives 1, for samples of 3"),
        ({"num_classes": 2}, "num_classes is 2, and this UNet2DModel takes 0 labels"),
        ({"arrays": {"text": [5, 12]}}, "a UNet2DModel takes no arrays, got text"),
        ({"kind": "UNet3DConditionModel"}, "one of UNet2DModel, UNet2DConditionModel, DiTTransformer2DModel, got"),
        ({"config": {**UNET, "time_embedding_type": "fourier"}}, "has time_embedding_type 'fourier'"),
        ({"config": {**UNET, "class_embed_type": "timestep"}}, "has class_embed_type 'timestep'"),
        (
            {"config": {**UNET, "down_block_types": ["os.system", "DownBlock2D"]}},
            "diffusers cannot build a UNet2DModel",
        ),
        ({"config": {**UNET, "norm_num_groups": 0}}, "diffusers cannot build a UNet2DModel"),
        ({"config": {**UNET, "num_class_embeds": 4}, "num_classes": 3, "null_class": 4}, "null_class is one of"),
    ],
    ids=[str(number) for number in range(9)],
)
def test_what_is_not_read_is_refused_in_a_sentence(change, sentence):
    with pytest.raises(ValueError, match=sentence):
        DiffusersNetwork(**{**CASES["unet"], **change})


@pytest.mark.parametrize(
    "config",
    [
        {**UNET, "block_out_channels": [10**9]},
        {**UNET, "act_fn": "x" * 1000},
        {**UNET, "down_block_types": ["A"] * 65},
        {**UNET, "down_block_types": [[[[["A"]]]]]},
        {**UNET, "act_fn": {"auto_map": "evil.Net"}},
        {**UNET, "norm_eps": 1e30},
        ["UNet2DModel"],
    ],
    ids=[str(number) for number in range(7)],
)
def test_settings_of_a_file_are_looked_at_before_anything_is_built(config):
    spec = {"class_path": "ctm.networks.DiffusersNetwork", "init_args": {**CASES["unet"], "config": config}}
    with pytest.raises(ValueError, match="DiffusersNetwork's config must be a mapping of names"):
        build(json.loads(json.dumps(spec)))
