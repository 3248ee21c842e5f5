"""DiT and UNet1d on sequences, and cross-attention to the sequences of a condition."""

import pytest
import torch

from ctm import DiffusionModel, TrajectoryModel
from ctm.networks import DiT, UNet1d
from ctm.networks.sequences import CrossAttention
from ctm.objectives.derivatives import directional_derivative

from ..conftest import random_weights

FIELDS = {"observation": (4,), "text": (5, 6), "path": (1, 8)}
BUILDERS = {
    "dit": lambda **kw: DiT((3, 8), 5, patch=2, width=24, blocks=2, heads=3, embedding=16, **kw),
    "unet1d": lambda **kw: UNet1d((3, 8), 5, channels=8, channel_mult=(1, 2), blocks=1, kernel=3, embedding=16, **kw),
}


def _fields(name):
    """UNet1d takes vectors and maps, DiT also sequences."""
    return {field: shape for field, shape in FIELDS.items() if name == "dit" or field != "text"}


def _condition(name, n):
    generator = torch.Generator().manual_seed(1)
    found = {field: torch.randn(n, *shape, generator=generator) for field, shape in _fields(name).items()}
    return {**found, "labels": torch.arange(n) % 5}


def _arguments(n):
    return torch.randn(n, 3, 8), torch.rand(n) + 0.1, torch.rand(n) * 0.1 + 0.01


@pytest.mark.parametrize("name", BUILDERS)
def test_every_parameter_takes_part_and_samples_do_not_mix(name):
    network = random_weights(BUILDERS[name](arrays=_fields(name), guidance_embedding=True))
    x, t, s = _arguments(4)
    condition = _condition(name, 4)
    condition["observation_present"] = torch.tensor([True, False, True, True])
    condition["guidance"] = torch.tensor([1.0, 2.0, 3.0, 4.0])
    together = network(x, t, s, condition)
    alone = [
        network(x[i : i + 1], t[i : i + 1], s[i : i + 1], {key: value[i : i + 1] for key, value in condition.items()})
        for i in range(4)
    ]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-4)
    together.square().sum().backward()
    unused = [key for key, p in network.named_parameters() if p.grad is None or not bool(p.grad.abs().sum() > 0)]
    assert unused == []


@pytest.mark.parametrize("name", BUILDERS)
def test_a_fresh_student_copied_from_its_teacher_is_its_teacher(name):
    teacher = random_weights(BUILDERS[name](s_embedding=False))
    student = BUILDERS[name]()
    missing, unexpected = student.load_state_dict(teacher.state_dict(), strict=False)
    assert unexpected == []
    assert all("s_affine" in key or "s_embedding" in key for key in missing)
    x, t, s = _arguments(2)
    a = DiffusionModel(teacher, shape=(3, 8), num_classes=5)
    b = TrajectoryModel(student, shape=(3, 8), num_classes=5)
    assert torch.equal(a.denoise(x, t), b.g(x, t, s))
    random_weights(student)
    assert not torch.equal(b.g(x, t, s), b.g(x, t, s / 2))


@pytest.mark.parametrize("name", BUILDERS)
def test_absent_fields_and_masked_tokens_change_nothing_whatever_they_hold(name):
    network = random_weights(BUILDERS[name](arrays=_fields(name))).eval()
    x, t, s = _arguments(2)
    condition = _condition(name, 2)
    full = network(x, t, s, condition)
    for field in _fields(name):
        absent = {**condition, f"{field}_present": torch.tensor([False, False])}
        other = {**absent, field: condition[field] + 7}
        assert torch.equal(network(x, t, s, absent), network(x, t, s, other))
        assert not torch.allclose(network(x, t, s, absent), full)
    if name == "dit":
        mask = torch.tensor([[True] * 3 + [False] * 2] * 2)
        text = torch.where(mask[..., None], condition["text"], torch.full_like(condition["text"], 9.0))
        masked = network(x, t, s, {**condition, "text_mask": mask})
        assert torch.equal(masked, network(x, t, s, {**condition, "text": text, "text_mask": mask}))
        assert not torch.allclose(masked, full)


def test_cross_attention_is_softmax_over_the_tokens_that_are_there():
    attention = random_weights(CrossAttention(8, 2)).double()
    x, tokens = torch.randn(2, 3, 8, dtype=torch.float64), torch.randn(2, 4, 8, dtype=torch.float64)
    seen = torch.tensor([[True, True, True, False], [True, False, False, False]])
    key, value = attention.key_value(tokens).chunk(2, dim=-1)
    parts = []
    for head in range(2):
        part = slice(4 * head, 4 * head + 4)
        scores = attention.query(x)[..., part] @ key[..., part].transpose(1, 2) / 2
        weights = scores.masked_fill(~seen[:, None], -torch.inf).softmax(dim=-1)
        parts.append(weights @ value[..., part])
    torch.testing.assert_close(attention(x, tokens, seen), attention.out(torch.cat(parts, dim=-1)))


@pytest.mark.parametrize("shape", [(2, 6, 4), (3, 8)])
def test_patches_become_tokens_and_pixels_again(shape):
    network = DiT(shape, patch=2, width=16, blocks=1, heads=2)
    x = torch.randn(2, *shape)
    tokens = network._tokens(x)
    assert torch.equal(network._image(tokens), x)
    corner = x[:, :, :2] if len(shape) == 2 else x[:, :, :2, :2]
    assert torch.equal(tokens[:, 0], corner.flatten(1))


@pytest.mark.parametrize("name", BUILDERS)
def test_the_derivative_along_a_direction_is_that_of_finite_differences(name):
    network = random_weights(BUILDERS[name](arrays=_fields(name))).double().eval()
    x, t, s = (value.double() for value in _arguments(2))
    condition = {key: v.double() if v.is_floating_point() else v for key, v in _condition(name, 2).items()}
    direction, h = torch.randn_like(x), 1e-5

    def along(x, s):
        return network(x, t, s, condition)

    _, found = directional_derivative(along, (x, s), (direction, torch.ones_like(s)))
    with torch.no_grad():
        difference = (along(x + h * direction, s + h) - along(x - h * direction, s - h)) / (2 * h)
    torch.testing.assert_close(found, difference, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", BUILDERS)
def test_bf16_runs(name):
    network = random_weights(BUILDERS[name](arrays=_fields(name))).eval()
    x, t, s = _arguments(2)
    condition = _condition(name, 2)
    with torch.no_grad():
        plain = network(x, t, s, condition)
        with torch.autocast("cpu", torch.bfloat16):
            low = network(x, t, s, condition)
    torch.testing.assert_close(low.float(), plain, rtol=0.1, atol=0.1 * plain.abs().max().item())


@pytest.mark.slow
@pytest.mark.parametrize("name", BUILDERS)
def test_a_compiled_graph_runs(name):
    network = random_weights(BUILDERS[name](arrays=_fields(name))).eval()
    x, t, s = _arguments(2)
    condition = _condition(name, 2)
    with torch.no_grad():
        plain = network(x, t, s, condition)
        network.compile(backend="aot_eager")
        torch.testing.assert_close(network(x, t, s, condition), plain, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", BUILDERS)
def test_maps_for_feature_losses_and_a_file_of_the_model(name, tmp_path):
    network = random_weights(BUILDERS[name](arrays=_fields(name)))
    x, t, s = _arguments(2)
    maps = network.encode(x, t, _condition(name, 2))
    assert len(maps) == 2
    assert all(found.dim() == 4 and found.shape[3] == 1 for found in maps)
    model = TrajectoryModel(network, shape=(3, 8), num_classes=5).eval()
    model.save_pretrained(tmp_path)
    again = TrajectoryModel.from_pretrained(tmp_path)
    condition = _condition(name, 2)
    assert torch.equal(again.jump(x, t + 1, s, condition), model.jump(x, t + 1, s, condition))


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: DiT((7,), width=16, heads=2), r"takes images \(C, H, W\) and sequences \(C, L\), got shape \[7\]"),
        (lambda: DiT((1, 9, 8), patch=2), r"patches of 2 needs sides divisible by it, got \[9, 8\]"),
        (lambda: DiT((1, 8, 8), width=30, heads=4), r"a width that heads \(4\) and 4 divide, got 30"),
        (lambda: UNet1d((3, 10), channel_mult=(1, 2, 4)), "3 levels needs a length divisible by 4, got 10"),
        (lambda: UNet1d((3, 8, 8)), r"takes sequences \(C, L\), got shape \[3, 8, 8\]"),
        (lambda: UNet1d((3, 8), kernel=4), "needs an odd kernel, which keeps the length, got 4"),
        (lambda: UNet1d((3, 8), arrays={"text": (5, 6)}), "the field 'text' has shape"),
    ],
)
def test_unfit_shapes_are_refused_in_a_sentence(build, words):
    with pytest.raises(ValueError, match=words):
        build()
