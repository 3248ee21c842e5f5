"""Where a model computes, and that the caller's stays where and as it is. The second device is meta: it has shapes and no
numbers, so a sampler that hands back its own shapes stands for the arithmetic."""

import copy
from functools import partial

import pytest
import torch

import ctm
from ctm import TrajectoryModel, guidance, sampling
from ctm.models.guided import AtGuidance, at_guidance
from ctm.networks import MLP
from ctm.sampling.common import device_of, tensors_of, usable_device
from ctm.sampling.generation import copy_on

from ..conftest import random_weights

META = torch.device("meta")


def guided_model() -> TrajectoryModel:
    network = MLP((2,), 3, width=8, blocks=1, embedding=8, guidance_embedding=True)
    return random_weights(TrajectoryModel(network, shape=(2,), num_classes=3))


WRAPPERS = {
    "at guidance": partial(at_guidance, scale=2.0),
    "classifier-free": lambda model: guidance.ClassifierFree(model, 2.0),
    "a wrapper in a wrapper": lambda model: guidance.Thresholded(at_guidance(model, 2.0)),
    "autoguided": lambda model: guidance.Autoguided(model, model, 2.0),
}


def state(model):
    """All that a call could leave changed."""
    tensors = [(id(tensor), tensor.device, tensor.requires_grad, tensor.clone()) for tensor in tensors_of(model)]
    modules = [(module.training, len(module._forward_hooks)) for module in model.modules()]
    return tensors, modules, dict(model.grids)


def same(before, after):
    assert before[1:] == after[1:]
    for one, other in zip(before[0], after[0], strict=True):
        assert one[:3] == other[:3]
        assert torch.equal(one[3], other[3])


def zeros(model, x, grid, labels, noise):
    return torch.zeros(x.shape)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("device", ["meta", "nope", "cpu", None, META])
def test_case_25_the_callers_model_stays_as_it_is(monkeypatch, device, training):
    """Whether the device is refused, computes, or raises half-way; and, past the refusal, where a copy is made."""
    model = guided_model().train(training)
    next(model.parameters()).requires_grad_(False)
    model.network.register_forward_hook(lambda *_: None)
    before = state(model)
    for sampler in (None, lambda *a, **k: 1 / 0):
        if device in ("meta", "nope", META):
            with pytest.raises(ValueError, match=f"device {device} "):
                ctm.generate(model, 2, device=device, sampler=sampler)
        elif sampler:
            with pytest.raises(ZeroDivisionError):
                ctm.generate(model, 2, device=device, sampler=sampler)
        else:
            assert len(next(iter(sampling.stream(model, 3, batch_size=2, device=device)))) == 2
        same(before, state(model))
    monkeypatch.setattr("ctm.sampling.generation.usable_device", torch.device)
    assert torch.equal(ctm.generate(model, 2, device="meta", sampler=zeros), torch.zeros(2, 2))
    same(before, state(model))


def test_case_25_a_device_that_does_not_compute_is_a_sentence():
    with pytest.raises(ValueError, match="device meta holds shapes and no numbers"):
        ctm.generate(guided_model(), 4, device="meta")
    with pytest.raises(ValueError, match="device nope cannot be used here"):
        usable_device("nope")
    with pytest.raises(ValueError, match="device meta holds shapes and no numbers"):
        ctm.generate(guided_model().to("meta"), 4)


@pytest.mark.parametrize("name", WRAPPERS)
def test_case_25_a_copy_computes_elsewhere(name):
    """Every tensor of it is there, the wrapper's settings are its own, and what is there already is not copied."""
    model = guided_model()
    wrapped = WRAPPERS[name](model)
    before = state(model)
    far = copy_on(wrapped, META)
    assert {tensor.device for tensor in tensors_of(far)} == {META}
    assert [type(tensor) for tensor in tensors_of(far)] == [type(tensor) for tensor in tensors_of(wrapped)]
    assert far.num_classes == 3
    same(before, state(model))
    assert copy_on(wrapped, torch.device("cpu")) is wrapped


def test_case_25_what_cannot_be_copied_is_a_sentence():
    model = guided_model()
    model.generator = (number for number in range(3))
    with pytest.raises(ValueError, match=r"cannot be copied to meta .*: bring it there yourself, model.to\('meta'\)"):
        copy_on(model, META)


@pytest.mark.parametrize("name", WRAPPERS)
def test_case_26_the_device_of_a_wrapped_model_is_the_models(name):
    model = guided_model()
    assert device_of(WRAPPERS[name](model)) == torch.device("cpu")
    far = WRAPPERS[name](model.to(META))
    assert device_of(far) == META
    labels = torch.zeros(2, dtype=torch.int64)
    x = torch.empty(2, 2, device=META)
    for level in (1.0, torch.ones(2)):  # from anywhere, they come to x
        assert far.denoise(x, level, labels).device == META


def test_case_26_generate_brings_the_state_to_a_wrapped_models_device(monkeypatch):
    """`usable_device` refuses meta for its lack of numbers; past it, state and labels are where the model is."""
    monkeypatch.setattr("ctm.sampling.generation.usable_device", torch.device)
    seen = []

    def sampler(model, x, grid, labels, noise):
        seen.append((x.device, labels.device, model.denoise(x, torch.ones(2), labels).device))
        return torch.zeros(x.shape)

    ctm.generate(AtGuidance(guided_model().to(META), 2.0), 2, sampler=sampler)
    assert seen == [(META, META, META)]


def test_a_copy_samples_what_the_model_does():
    model = guided_model()
    wrapped = at_guidance(model, 2.0)
    other = copy.deepcopy(wrapped)
    assert torch.equal(ctm.generate(other, 4, steps=2), ctm.generate(wrapped, 4, steps=2))
