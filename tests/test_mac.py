"""Evaluation, likelihood and edits on a device that has no float64, as a Mac's GPU: the numbers of the CPU, and none refused."""

from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import pytest
import torch

from ctm import DiffusionModel, editing
from ctm.data import Images, load_images
from ctm.evaluation import reference
from ctm.evaluation.classifier import train_classifier
from ctm.evaluation.extractors import classifier_extractor
from ctm.evaluation.inception import resize_bilinear
from ctm.evaluation.likelihood import likelihood_number
from ctm.evaluation.passes import Processes
from ctm.evaluation.plans import make_plans, subject_of
from ctm.evaluation.run import evaluate_plans, judge_of
from ctm.likelihood import decode, encode, estimate_log_density, flow
from ctm.networks import MLP

from .conftest import random_weights, slow
from .mac import DEVICE, OnMac, mac


@pytest.fixture(autouse=True)
def _without_float64(monkeypatch):
    monkeypatch.setattr(flow, "WITHOUT_FLOAT64", {DEVICE.type})
    monkeypatch.setattr(reference, "train_classifier", partial(train_classifier, steps=3))


def on_cpu(x):
    return x.held if isinstance(x, OnMac) else x


def test_the_device_computes_and_has_no_float64():
    with mac():
        x = torch.arange(3.0).to(DEVICE)
        assert x.device == DEVICE
        assert (2 * x + torch.ones(3, device=DEVICE)).cpu().tolist() == [1, 3, 5]
        for make in (
            x.double,
            lambda: x.new_zeros(2, dtype=torch.float64),
            lambda: torch.tensor(0.5).double().to(DEVICE),
        ):
            with pytest.raises(TypeError, match="float64 on a device that has none"):
                make()


@pytest.mark.slow
def test_an_evaluation_makes_no_float64_on_the_device(small_ctm, tmp_path):
    """A teacher and a model, guided too, and the bits per dimension. The rows are those of the CPU."""
    digits = load_images("digits")
    images = Images(digits.pixels[:300], digits.labels[:300])
    network = random_weights(MLP((1, 8, 8), 10, width=16, blocks=1, embedding=8, s_embedding=False))
    teacher = DiffusionModel(network, shape=(1, 8, 8), num_classes=10).eval()
    found = {}
    for device in (torch.device("cpu"), DEVICE):
        judge = judge_of(images, features="classifier", images=24, rows=24)
        with mac() if device == DEVICE else nullcontext():
            judge = replace(judge, classifier=judge.classifier.to(device), processes=Processes(device=device))
            judge = replace(judge, extractor=classifier_extractor(judge.classifier))
            asked = make_plans(subject_of("teacher", "t", teacher), steps=[2])
            asked += make_plans(subject_of("model", "m", small_ctm), steps=[1])
            asked += make_plans(subject_of("model", "m", small_ctm), steps=[1], guidance=2.0)
            rows = evaluate_plans(judge, asked, tmp_path / device.type, quiet=True)
            bits = likelihood_number(judge, small_ctm, 1)
        found[device] = [number.value for row in rows for number in row.numbers.values()] + [bits.value]
    assert len(found[DEVICE]) > 30
    assert found[DEVICE][:-1] == pytest.approx(found[torch.device("cpu")][:-1], rel=1e-3, abs=1e-6, nan_ok=True)
    assert found[DEVICE][-1] == pytest.approx(found[torch.device("cpu")][-1], rel=1e-2)


def test_a_likelihood_makes_no_float64_on_the_device(small_ctm):
    """The solver keeps float32 there, in place of float64: the same to the tolerances."""
    x, labels = 0.5 * torch.randn(2, 1, 8, 8), torch.tensor([3, -1])
    there = []
    for device in (torch.device("cpu"), DEVICE):
        with mac() if device == DEVICE else nullcontext():
            model = small_ctm.to(device)
            options = {"rtol": 0.03, "atol": 0.03}
            density = estimate_log_density(model, x.to(device), labels.to(device), **options)
            empty = estimate_log_density(model, x[:0].to(device), None)
            z = encode(model, x.to(device), labels.to(device), **options)
            there.append([on_cpu(each) for each in (density.value, z, decode(model, z, labels.to(device), **options))])
        assert len(empty.value) == 0
    for mine, other in zip(*there, strict=True):
        torch.testing.assert_close(mine.float(), other, rtol=1e-3, atol=1e-3)


EDITS = {
    "denoise": lambda model, x, y: editing.denoise(model, x, 0.5, y),
    "posterior": lambda model, x, y: editing.posterior_sample(model, x, 0.5, steps=3, condition=y),
    "stroke": lambda model, x, y: editing.stroke(model, x, 1.0, gamma_share=0.5, condition=y),
    "interpolate": lambda model, x, y: editing.interpolate(model, x[0], x[1], 3, condition=y, rtol=0.1, atol=0.1),
    "vary": lambda model, x, y: editing.variations(model, x[0], 2, 0.3, label=3, rtol=0.1, atol=0.1),
}
for _name, _operator in {
    "averaging": editing.averaging((8, 8), (5, 5)),
    "masking": editing.masking(torch.arange(64).reshape(8, 8) % 3 > 0),
}.items():
    EDITS[f"replace {_name}"] = lambda model, x, y, op=_operator: editing.into_range(
        editing.replace(model, op, op.A(x), steps=2, condition=y), op, op.A(x)
    )
    EDITS[f"guided {_name}"] = lambda model, x, y, op=_operator: editing.solve_guided(
        model, op, op.A(x), steps=3, condition=y
    )


@pytest.mark.parametrize("name", [slow(name) if name in ("interpolate", "vary") else name for name in EDITS])
def test_an_edit_makes_no_float64_on_the_device(small_ctm, name):
    x, labels = 0.5 * torch.randn(2, 1, 8, 8), torch.tensor([3, 4])
    made = []
    for device in (torch.device("cpu"), DEVICE):
        with mac() if device == DEVICE else nullcontext():
            made.append(on_cpu(EDITS[name](small_ctm.to(device), x.to(device), labels.to(device))))
    torch.testing.assert_close(*made, rtol=1e-3, atol=1e-3)


def test_inceptions_resizing_makes_no_float64_on_the_device():
    x = torch.randn(1, 3, 8, 8)
    with mac():
        there = resize_bilinear(x.to(DEVICE)).cpu()
    torch.testing.assert_close(there, resize_bilinear(x))
