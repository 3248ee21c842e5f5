"""Graphs give what the model gives, for any number of samples, with labels and fields, present and absent."""

import json
import runpy
import sys

import numpy as np
import onnxruntime
import pytest
import torch

from ctm import TrajectoryModel, generate, load_model
from ctm.betas import BetaSchedule
from ctm.export import SHIPPED, condition_inputs, export_onnx, export_torch
from ctm.networks import MLP, DDPMpp, DiffusersNetwork
from ctm.preconditioning import NoiseAndSample

from ..conftest import random_weights
from ..diffusers_models import UNET, made_random


def run_shipped(monkeypatch, *words: object) -> None:
    """`python run_onnx.py WORDS`, as a script, in this process."""
    runner = str(SHIPPED / "run_onnx.py")
    monkeypatch.setattr(sys, "argv", [runner, *map(str, words)])
    runpy.run_path(runner, run_name="__main__")


@pytest.fixture(scope="module")
def model():
    network = MLP([1, 4, 4], 3, width=16, blocks=1, embedding=8, arrays={"y": [2]}, guidance_embedding=True)
    return TrajectoryModel(random_weights(network), shape=[1, 4, 4], num_classes=3).eval()


def _rows(model, n):
    x = torch.randn(n, *model.shape)
    t, s = torch.linspace(1, 80, n), torch.linspace(0.002, 0.9, n)
    condition = condition_inputs(model.conditioner, n)
    condition["labels"] = torch.arange(n) % 4 - 1
    condition["y"], condition["y_present"] = torch.randn(n, 2), torch.arange(n) % 2 == 0
    condition["guidance"] = torch.linspace(1, 4, n)
    return x, t, s, condition


def test_the_graph_of_torch_export_is_the_model(model, tmp_path):
    export_torch(model.train(), tmp_path / "jump.pt2")
    assert model.training  # the caller's model stays as it was
    model.eval()
    graph = torch.export.load(tmp_path / "jump.pt2").module()
    for n in (1, 2, 5):
        x, t, s, condition = _rows(model, n)
        torch.testing.assert_close(
            graph(x, t, s, *condition.values()), model.jump(x, t, s, condition), rtol=0, atol=1e-4
        )


@pytest.mark.slow
def test_a_student_on_a_network_of_diffusers_is_exported_for_any_number_of_samples(tmp_path):
    """Two outputs, as the student of an ε-predicting teacher has them. diffusers' upsampling looks at the batch from 64 on."""
    blocks = {"down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2, "mid_block_type": None}
    config = {**UNET, **blocks, "block_out_channels": [4, 4]}
    network = made_random(DiffusersNetwork((1, 8, 8), kind="UNet2DModel", config=config, student=True, outputs=2))
    inner = NoiseAndSample(BetaSchedule(), 0.75)
    student = TrajectoryModel(network, shape=(1, 8, 8), sigma_min=0.01, sigma_max=100.0, inner=inner).eval()
    export_torch(student, tmp_path / "jump.pt2")
    graph = torch.export.load(tmp_path / "jump.pt2").module()
    for n in (1, 3, 70):
        t, s = torch.linspace(1, 80, n), torch.linspace(0.01, 0.9, n)
        x = (1 + t)[:, None, None, None] * torch.randn(n, 1, 8, 8)
        torch.testing.assert_close(graph(x, t, s), student.jump(x, t, s).detach(), rtol=0, atol=1e-4)


def test_the_onnx_graph_is_the_model(model, tmp_path, monkeypatch):
    names = export_onnx(model, tmp_path / "jump.onnx")
    assert names == ["x", "t", "s", "labels", "y", "y_present", "guidance"]
    session = onnxruntime.InferenceSession(tmp_path / "jump.onnx")
    assert [entry.name for entry in session.get_inputs()] == names
    for n in (1, 2, 5):
        x, t, s, condition = _rows(model, n)
        given = {"x": x, "t": t, "s": s, **condition}
        found = session.run(None, {name: value.numpy() for name, value in given.items()})[0]
        np.testing.assert_allclose(found, model.jump(x, t, s, condition).detach().numpy(), rtol=0, atol=1e-4)
    assert json.loads(session.get_modelmeta().custom_metadata_map["ctm"])["sigma_max"] == 80
    run_shipped(monkeypatch, tmp_path / "jump.onnx", tmp_path / "x.npy", 3, 0.5, 2, 4)
    assert np.load(tmp_path / "x.npy").shape == (4, 1, 4, 4)


def test_the_runner_is_thirty_lines_and_needs_onnxruntime_alone():
    lines = (SHIPPED / "run_onnx.py").read_text().splitlines()
    assert len(lines) <= 30
    imports = {line.split()[1] for line in lines if line.startswith(("import", "from"))}
    assert imports == {"argparse", "itertools", "json", "numpy", "onnxruntime"}


@pytest.mark.parametrize("words", [[], ["jump.onnx"], ["jump.onnx", "x.npy", "many"]], ids=["none", "one", "text"])
def test_the_runner_says_how_it_is_used(words, monkeypatch, capsys):
    runner = SHIPPED / "run_onnx.py"
    monkeypatch.setattr(sys, "argv", [str(runner), *words])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(runner))
    assert stop.value.code == 2
    assert "usage: run_onnx.py" in capsys.readouterr().err


def test_the_runner_samples_as_generate_does(tmp_path, monkeypatch):
    """Its own noise, given to our γ-sampling: one model, four steps, γ = 0 and 0.5."""
    from ctm.noise import karras_grid
    from ctm.sampling import gamma

    model = TrajectoryModel(random_weights(MLP([2, 3], width=16, blocks=1)), shape=[2, 3]).eval()
    export_onnx(model, tmp_path / "jump.onnx")
    for g in (0.0, 0.5):
        run_shipped(monkeypatch, tmp_path / "jump.onnx", tmp_path / "x.npy", 4, g, -1, 5, 7)
        draw = np.random.default_rng(7)

        def noise(x, draw=draw):
            return torch.from_numpy(draw.standard_normal(tuple(x.shape))).to(x)

        x = 80 * noise(torch.empty(5, 2, 3))
        with torch.no_grad():
            expected = gamma(model, x, karras_grid(4), gamma=g, noise=noise)
        np.testing.assert_allclose(np.load(tmp_path / "x.npy"), expected.numpy(), rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddpmpp", "shipped"])
def test_u_nets_go_through(kind, tmp_path):
    if kind == "shipped":
        model = load_model("models/fashion-mnist-ctm")
    else:
        network = DDPMpp([2, 8, 12], channels=8, channel_mult=[1, 2], blocks=1, attention=[4])
        model = TrajectoryModel(random_weights(network), shape=[2, 8, 12]).eval()
    export_onnx(model, tmp_path / "jump.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "jump.onnx")
    x, t, s = 80 * torch.randn(3, *model.shape), torch.full((3,), 80.0), torch.full((3,), 0.002)
    labels = {"labels": np.array([0, 1, -1])} if model.num_classes else {}
    found = session.run(None, {"x": x.numpy(), "t": t.numpy(), "s": s.numpy(), **labels})[0]
    expected = model.jump(x, t, s, torch.tensor([0, 1, -1]) if labels else None)
    np.testing.assert_allclose(found, expected.detach().numpy(), rtol=0, atol=1e-4)
    assert generate(model, 1, condition=0 if labels else None).isfinite().all()
