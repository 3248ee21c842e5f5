import functools
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
import schedulefree
import torch
from safetensors.torch import load_file

from ctm import TrajectoryModel, load_model
from ctm.networks import DDPMpp
from ctm.objectives import DenoisingScoreMatching, Matching
from ctm.terminal.recipe_parser import parse_recipe
from ctm.training import train
from ctm.training.ema import frozen_copy
from ctm.training.engine import EngineSettings, ScaledOptimizer, compile_networks, set_layout, set_precision
from ctm.training.step import LossModule, backward, draw_batch, step_generator

from ..conftest import random_weights, slow
from .test_trainer import assert_same, student_arguments, weights

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    from .test_trainer import teacher_recipe

    out = tmp_path_factory.mktemp("engine") / "teacher"
    recipe, text = teacher_recipe("--steps", "3")
    train(recipe, out, text)
    return out


def run(teacher: Path, out: Path, *extra: str) -> list[dict[str, float]]:
    """A short run of the digits' CTM; the rows of its metrics."""
    arguments = student_arguments(teacher, "--sample_every", "1000", "--log_every", "1", *extra)
    recipe, text = parse_recipe(arguments)
    train(recipe, out, text)
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_a_batch_in_pieces_makes_the_step_of_the_whole(teacher, tmp_path):
    fixed = ("--steps", "4", "--adaptive_balance", "false", "--optimizer.class_path", "torch.optim.SGD")
    whole = run(teacher, tmp_path / "whole", *fixed)
    pieces = run(teacher, tmp_path / "pieces", *fixed, "--engine.accumulate", "4")
    for a, b in zip(whole, pieces, strict=True):
        for name in ("loss/Matching", "loss/DenoisingScoreMatching", "gradient_norm", "teacher_evaluations_per_image"):
            assert b[name] == pytest.approx(a[name], rel=1e-5), name
    found, expected = weights(tmp_path / "pieces"), weights(tmp_path / "whole")
    start = run(teacher, tmp_path / "start", *fixed[2:], "--steps", "1", "--optimizer.init_args.lr", "0")
    assert start[0]["gradient_norm"] > 0
    moved = False
    for name, value in weights(tmp_path / "start").items():
        torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-6)
        moved |= not torch.allclose(value, expected[name], rtol=1e-4, atol=1e-4)
    assert moved, "the comparison must be of weights that moved"


def test_a_batch_that_does_not_divide_into_pieces_is_a_sentence(teacher, tmp_path):
    with pytest.raises(ValueError, match="batch_size 16 does not divide among 1 processes in 3 pieces each"):
        run(teacher, tmp_path / "run", "--steps", "1", "--engine.accumulate", "3")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"compile": "fast"}, r"engine.compile must be one of .*inductor.*, got 'fast'"),
        ({"accumulate": 0}, "engine.accumulate must be at least 1, got 0"),
        ({"clip_gradient_norm": 0.0}, r"engine.clip_gradient_norm must be above 0 or unset, got 0.0"),
    ],
)
def test_settings_out_of_range_are_sentences(arguments, message):
    with pytest.raises(ValueError, match=message):
        EngineSettings(**arguments)


def stepped(gradient: list[float], **settings: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The weights (first zero) and the norm told, after plain gradient descent with rate 1."""
    weight = torch.nn.Parameter(torch.zeros(len(gradient)))
    optimizer = ScaledOptimizer(torch.optim.SGD([weight], lr=1.0), CPU, EngineSettings(**settings))
    weight.grad = torch.tensor(gradient)
    norm, moved = optimizer.step()
    assert moved
    return weight.detach(), norm


def test_clipping_keeps_the_direction_and_bounds_the_norm():
    weight, norm = stepped([3.0, 4.0], clip_gradient_norm=1.0)
    torch.testing.assert_close(weight, torch.tensor([-0.6, -0.8]), rtol=1e-5, atol=0)
    assert norm == 5
    weight, norm = stepped([3.0, 4.0], clip_gradient_norm=6.0)
    torch.testing.assert_close(weight, torch.tensor([-3.0, -4.0]))
    assert stepped([3.0, 4.0])[1] == 5


def test_norms_and_memory_are_logged(teacher, tmp_path):
    row = run(teacher, tmp_path / "run", "--steps", "1")[0]
    at_last = [row[f"last_layer_gradient/{name}"] for name in ("Matching", "DenoisingScoreMatching")]
    assert row["weight/DenoisingScoreMatching"] == pytest.approx(at_last[0] / (at_last[1] + 1e-4), rel=1e-4)
    assert row["gradient_norm"] > 0
    assert row["peak_memory_mib"] > 50


# -- precision --


def small_unet() -> TrajectoryModel:
    """A U-Net with attention, its random weights always the same; no zero-initialised layer hides anything."""
    torch.manual_seed(0)
    network = DDPMpp((1, 8, 8), channels=32, channel_mult=[1, 2], blocks=1, attention=[4])
    model = TrajectoryModel(network, shape=(1, 8, 8))
    for parameter in model.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    return model


@functools.cache
def unet_step(precision: str = "fp32", scale: float = 1.0, backend: str | None = None, channels_last: bool = False):
    """Losses, adaptive weights and gradients of one step of a small U-Net, and the dtypes of its F."""
    model = small_unet()
    layout = torch.channels_last if channels_last else torch.contiguous_format
    if channels_last:
        set_layout([model])
    target, teacher = frozen_copy(model), frozen_copy(model)
    objectives = [Matching(max_solver_steps=1), DenoisingScoreMatching()]
    module = LossModule(model, objectives)
    set_precision((model, target, teacher), precision)
    if backend is not None:
        compile_networks((model, target, teacher), backend, eager=module.last_layer)
    x0 = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(1)).to(memory_format=layout)
    batch = draw_batch(
        objectives, model, x0, None, total=8, part=slice(0, 8), condition_dropout=0, generator=step_generator(0, 0)
    )
    losses = module(batch, target, teacher)
    kinds = {output.dtype for output in module.outputs}
    balance = backward(module, losses, scale=scale)
    return losses, balance, torch.cat([p.grad.flatten() / scale for p in model.parameters()]), kinds


@pytest.mark.parametrize(
    ("precision", "dtype", "scale"), [("bf16", torch.bfloat16, 1.0), slow("fp16", torch.float16, 1024.0)]
)
def test_networks_compute_low_and_losses_high(precision, dtype, scale):
    losses, balance, gradient, kinds = unet_step(precision, scale)
    expected_losses, expected_balance, expected, full = unet_step("fp32")
    assert (kinds, full) == ({dtype}, {torch.float32})
    assert all(loss.dtype == torch.float32 for loss in losses)
    assert gradient.dtype == torch.float32
    tolerance = {"bf16": 0.03, "fp16": 0.004}[precision]
    for found, value in zip([*losses, *balance], [*expected_losses, *expected_balance], strict=True):
        assert found.item() == pytest.approx(value.item(), rel=tolerance)
    assert (gradient - expected).norm() < tolerance * expected.norm()


def test_the_scale_of_the_losses_changes_neither_weights_nor_gradients():
    plain, scaled = unet_step("fp32"), unet_step("fp32", 1024.0)
    assert scaled[1] == plain[1]
    assert torch.equal(scaled[2], plain[2])


def test_the_scalings_stay_exact_in_low_precision(small_ctm):
    """What of a jump does not come from F is as exact as in float32: at s = t the jump is x itself, and g differs from
    float32's by F's rounding alone, c_out·2⁻⁸·|F|."""
    x, t = torch.randn(4, 1, 8, 8), torch.tensor([0.003, 0.5, 10.0, 80.0])
    exact = small_ctm.g(x, t, t)
    set_precision([small_ctm], "bf16")
    assert torch.equal(small_ctm.jump(x, t, t), x)
    c_out = (t * 0.5 / (t**2 + 0.25).sqrt())[:, None, None, None]
    c_skip = (0.25 / (t**2 + 0.25))[:, None, None, None]
    network_output = (exact - c_skip * x) / c_out
    error = (small_ctm.g(x, t, t) - exact).abs() / c_out
    assert 0 < error.max() < 0.05 * network_output.abs().max()
    assert small_ctm.g(x, t, t).dtype == torch.float32


@pytest.mark.parametrize("precision", [slow("bf16"), "fp16"])
def test_a_run_in_low_precision_continues_to_the_same_bits(teacher, tmp_path, precision):
    """The scale of the losses is part of it: it moves in the first steps of fp16."""
    options = ("--engine.precision", precision, "--steps", "6", "--checkpoint_every", "3")
    rows = run(teacher, tmp_path / "whole", *options)
    assert all(value.dtype == torch.float32 for value in weights(tmp_path / "whole").values())
    assert ("loss_scale" in rows[0]) == (precision == "fp16")
    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    shutil.rmtree(tmp_path / "parts" / "checkpoints" / "00000006")
    again = run(teacher, tmp_path / "parts", *options)
    assert_same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))
    assert [row["loss/Matching"] for row in again] == [row["loss/Matching"] for row in rows]


def test_a_step_whose_gradients_overflow_moves_nothing(teacher, tmp_path, monkeypatch):
    """At a scale of 1e30 every float16 gradient is infinite: weights and averages stay, the scale falls."""
    from ctm.training import assembly, trainer

    original = ScaledOptimizer.__init__

    def far_too_large(self, *arguments):
        original(self, *arguments)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=1e30)
        self.scaler.scale(torch.ones(()))

    monkeypatch.setattr(ScaledOptimizer, "__init__", far_too_large)
    recipe, _ = parse_recipe(student_arguments(teacher, "--engine.precision", "fp16"))
    from accelerate import Accelerator

    prepared = assembly.prepare(recipe, Accelerator(), assembly.load_data(recipe))
    for group in prepared.optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    random_weights(prepared.student)
    before = [{k: v.clone() for k, v in m.state_dict().items()} for m in prepared.modules().values()]
    numbers = trainer._step(prepared, 0)
    assert not torch.isfinite(torch.as_tensor(numbers["gradient_norm"]))
    assert prepared.optimizer.scale == pytest.approx(5e29)
    for kept, module in zip(before, prepared.modules().values(), strict=True):
        assert_same(kept, module.state_dict())


# -- averages --

SEVERAL = (
    '[{"class_path": "ctm.training.Decay", "init_args": {"decay": 0.5}},'
    ' {"class_path": "ctm.training.PowerFunction", "init_args": {"sigma_rel": 0.1}}]'
)


def test_several_averages_are_published_and_continued(teacher, tmp_path):
    options = ("--steps", "6", "--checkpoint_every", "3", "--ema", SEVERAL)
    run(teacher, tmp_path / "whole", *options)
    models = [load_model(tmp_path / "whole" / name) for name in ("model", "model-power-0.1")]
    assert_same(models[0].state_dict(), weights(tmp_path / "whole"))
    assert not torch.equal(models[0].network.first.weight, models[1].network.first.weight)
    run(teacher, tmp_path / "single", "--steps", "6", "--ema", "0.5")
    assert_same(weights(tmp_path / "single"), weights(tmp_path / "whole"))
    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    shutil.rmtree(tmp_path / "parts" / "checkpoints" / "00000006")
    run(teacher, tmp_path / "parts", *options)
    assert_same(load_model(tmp_path / "parts" / "model-power-0.1").state_dict(), models[1].state_dict())


def test_no_averages_or_equal_ones_are_a_sentence(teacher, tmp_path):
    one = '{"class_path": "ctm.training.Decay", "init_args": {"decay": 0.5}}'
    for value, named in (("[]", "none"), (f"[{one}, {one}]", "decay-0.5, decay-0.5")):
        with pytest.raises(ValueError, match=f"ema must be a decay or a list of different averages, got {named}"):
            run(teacher, tmp_path / "run", "--steps", "1", "--ema", value)


# -- layout and compilation --


def assert_same_step(found, expected, tolerance: float) -> None:
    for value, other in zip([*found[0], *found[1]], [*expected[0], *expected[1]], strict=True):
        torch.testing.assert_close(value, other, rtol=tolerance, atol=0)
    assert (found[2] - expected[2]).norm() < tolerance * expected[2].norm()


def test_channels_last_changes_no_number():
    assert_same_step(unet_step(channels_last=True), unet_step(), 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_networks_make_the_same_step(backend):
    """The hook on the last layer sees each call, and the gradients are had in the same two passes."""
    torch._dynamo.reset()
    assert_same_step(unet_step(backend=backend), unet_step(), 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_a_compiled_run_is_the_plain_one_under_the_same_names(teacher, tmp_path, backend):
    torch._dynamo.reset()
    options = ("--steps", "3", "--optimizer.class_path", "torch.optim.SGD", "--engine.channels_last", "true")
    plain = run(teacher, tmp_path / "plain", *options)
    compiled = run(teacher, tmp_path / "compiled", *options, "--engine.compile", backend)
    for a, b in zip(plain, compiled, strict=True):
        assert b["loss/Matching"] == pytest.approx(a["loss/Matching"], rel=1e-4)
        assert b["weight/DenoisingScoreMatching"] == pytest.approx(a["weight/DenoisingScoreMatching"], rel=1e-4)
    found, expected = weights(tmp_path / "compiled"), weights(tmp_path / "plain")
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6)


# -- schedule-free --

FREE = ("--optimizer.class_path", "schedulefree.AdamWScheduleFree", "--optimizer.init_args.lr", "0.01")


def test_a_schedule_free_run_publishes_its_evaluation_weights(teacher, tmp_path):
    """With no averaging of ours the published weights are the optimiser's x = y + (z − y)·(1 − 1/β₁), from the checkpoint's y
    and z; and a continued run has the bits of a whole one."""
    options = (*FREE, "--steps", "6", "--checkpoint_every", "3", "--ema", "0")
    run(teacher, tmp_path / "whole", *options)
    last = tmp_path / "whole" / "checkpoints" / "00000006"
    kept = load_file(last / "student.safetensors")
    names = [name for name, _ in load_model(tmp_path / "whole").named_parameters()]  # the optimiser's order
    state = torch.load(last / "student.optimizer.pt", weights_only=True)
    beta = state["param_groups"][0]["betas"][0]
    published, moved = weights(tmp_path / "whole"), False
    for index, name in enumerate(names):
        expected = kept[name].lerp(state["state"][index]["z"], 1 - 1 / beta)
        torch.testing.assert_close(published[name], expected)
        moved |= not torch.allclose(published[name], kept[name], atol=1e-4)
    assert moved, "the two weights must differ for this to tell them apart"
    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    shutil.rmtree(tmp_path / "parts" / "checkpoints" / "00000006")
    run(teacher, tmp_path / "parts", *options)
    assert_same(weights(tmp_path / "parts"), published)
    assert_same(load_file(tmp_path / "parts" / "checkpoints" / "00000006" / "student.safetensors"), kept)


def test_looking_at_evaluation_weights_leaves_the_training_weights_their_bits():
    weight = torch.nn.Parameter(torch.randn(1000))
    free = schedulefree.AdamWScheduleFree([weight], lr=0.1)
    optimizer = ScaledOptimizer(free, CPU, EngineSettings())
    for _ in range(3):
        weight.grad = torch.randn(1000)
        optimizer.step()
    before = weight.detach().clone()
    with optimizer.evaluation_weights():
        assert not torch.allclose(weight, before, atol=1e-3)
    assert torch.equal(weight, before)


# -- trackers --


@pytest.mark.slow
def test_wandb_gets_every_number_without_a_network(teacher, tmp_path):
    arguments = student_arguments(teacher, "--steps", "2", "--trackers", "[wandb]", "--out", str(tmp_path / "run"))
    environment = {**os.environ, "WANDB_MODE": "offline", "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-m", "ctm", "train", *arguments], check=True, env=environment, capture_output=True)
    (file,) = (tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb")
    row = json.loads((tmp_path / "run" / "metrics.jsonl").read_text())
    for name in row.keys() - {"step"}:
        assert name.encode() in file.read_bytes(), name


def test_trackio_gets_every_number(teacher, tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    rows = run(teacher, tmp_path / "run", "--steps", "2", "--trackers", "[trackio]")
    with sqlite3.connect(tmp_path / "trackio" / "ctm.db") as database:
        kept = database.execute("select step, metrics from metrics order by step").fetchall()
        (settings,) = database.execute("select config from configs").fetchone()
    assert [{"step": step, **json.loads(values)} for step, values in kept] == rows
    assert json.loads(settings)["steps"] == 2


def test_a_tracker_that_is_not_installed_is_a_sentence(teacher, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # what import sees of a package that is not there
    with pytest.raises(
        ValueError, match=r"the tracker wandb needs the package wandb: pip install 'ctm-torch\[wandb\]'"
    ):
        run(teacher, tmp_path / "run", "--steps", "1", "--trackers", "[wandb]")
    assert not (tmp_path / "run").exists()
