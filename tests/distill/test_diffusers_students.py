"""Students on the backbone of a teacher of diffusers: at the start they are the teacher, and distill trains them."""

import json

import pytest
import torch
import yaml
from accelerate import Accelerator
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

from ctm import load_model, load_teacher
from ctm.cli import main
from ctm.commands import distill as command
from ctm.networks.adapters import own_tensors
from ctm.terminal.recipe_parser import parse_recipe
from ctm.training import assembly
from ctm.training.engine import set_checkpointing

from ..diffusers_models import UNET, made_random
from ..diffusers_training import train_ddpm
from ..training.runs import everything

SHORT = ("--data", "digits", "--steps", "3", "--batch_size", "8", "--num", "16")


@pytest.fixture(scope="module")
def directories(tmp_path_factory):
    """A pipeline of diffusers for each prediction, with random weights."""
    found = {}
    for prediction in ("epsilon", "v_prediction", "sample"):
        found[prediction] = tmp_path_factory.mktemp("teacher") / prediction
        scheduler = DDPMScheduler(prediction_type=prediction)
        DDPMPipeline(unet=made_random(UNet2DModel(**UNET)), scheduler=scheduler).save_pretrained(found[prediction])
    return found


@pytest.fixture(autouse=True)
def without_features(monkeypatch):
    monkeypatch.setattr(command, "feature_network", lambda images, wanted: (None, "none is here"))


def prepared(text: str, **options):
    recipe, _ = parse_recipe(["--config", text])
    return assembly.prepare(recipe, Accelerator(cpu=True), assembly.load_data(recipe))


def recipe_of(teacher, tmp_path, *extra) -> dict:
    """The recipe that distill writes for a teacher."""
    out = tmp_path / "fast"
    assert main(["distill", str(teacher), "--out", str(out), *SHORT, *extra]) == 0
    return yaml.safe_load((out / "recipe.yaml").read_text())


@pytest.mark.parametrize(("prediction", "extra"), [("epsilon", ()), ("v_prediction", ()), ("sample", ("--lora", "2"))])
def test_the_student_is_the_teacher_at_the_start(directories, tmp_path, prediction, extra):
    """g(x, t, s) = D(x, t) for every s, to rounding (1e-6 of each term's size, |x| is about σ). From then on s is learned."""
    settings = recipe_of(directories[prediction], tmp_path, *extra)
    assert settings["network"]["class_path"] == "ctm.networks.DiffusersNetwork"
    assert settings["network"]["init_args"]["student"] is True
    assert settings["data"]["unlabelled"] is True
    run = prepared(yaml.safe_dump(settings))
    teacher = load_teacher(directories[prediction], sigma_data=lambda shape: (run.teacher.sigma_data, ""))
    levels = torch.tensor([0.011, 0.3, 2.0, 40.0, 150.0])
    x = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(1)) * (1 + levels.view(-1, 1, 1, 1))
    expected = teacher.denoise(x, levels)
    for s in (levels, 0.9 * levels, torch.full_like(levels, run.student.sigma_min)):
        with torch.no_grad():
            found = run.student.eval().g(x, levels, s)
        assert float(((found - expected).abs() / (1 + levels.view(-1, 1, 1, 1))).max()) < 1e-6
    trained = load_model(tmp_path / "fast")
    assert type(trained.network).__name__ == "DiffusersNetwork"
    with torch.no_grad():
        assert 0 < float((trained.g(x, levels, 0.1 * levels) - expected).abs().max()) < torch.inf
    assert trained.inner == teacher.inner
    assert not any("lora" in name for name in trained.state_dict())


def test_the_recipe_is_run_by_train_to_the_same_bits(directories, tmp_path):
    settings = tmp_path / "fast" / "recipe.yaml"
    recipe_of(directories["epsilon"], tmp_path)
    assert main(["train", "--config", str(settings), "--out", str(tmp_path / "again")]) == 0
    assert everything(tmp_path / "again") == everything(tmp_path / "fast")
    assert json.loads((tmp_path / "fast" / "result.json").read_text())["rms_to_teacher"].keys() == {"1", "2", "4"}


@pytest.mark.parametrize("lora", [False, True])
def test_blocks_computed_again_have_the_same_gradients(directories, tmp_path, lora):
    """diffusers' own gradient checkpointing under `engine.checkpoint_gradients`."""
    settings = recipe_of(directories["epsilon"], tmp_path, *(("--lora", "2") if lora else ()))
    grads = []
    for again in (False, True):
        run = prepared(yaml.safe_dump(settings))
        generator = torch.Generator().manual_seed(2)
        with torch.no_grad():
            for tensor in own_tensors(run.student).values():
                tensor += 0.05 * torch.randn(tensor.shape, generator=generator)
        if again:
            set_checkpointing(run.student.network)
        x, t = torch.randn(3, 1, 8, 8, generator=generator), torch.tensor([0.1, 1.0, 30.0])
        run.student.train().jump(x, t, t / 2).square().mean().backward()
        grads.append({name: p.grad for name, p in run.student.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys()
    assert len(grads[0]) > 20
    for name, value in grads[0].items():
        torch.testing.assert_close(grads[1][name], value, rtol=1e-5, atol=1e-6 * float(value.abs().max() + 1e-12))


@pytest.mark.slow
def test_a_ddpm_of_diffusers_is_distilled_to_one_step(tmp_path, monkeypatch):
    """A DDPM of digits, trained by diffusers' own loop, distilled: one step within 1.3 times its Fréchet distance to the digits
    at 35 evaluations, by the features of the digits' classifier from 5,000 samples."""
    monkeypatch.undo()
    teacher, out = train_ddpm(tmp_path / "ddpm", 3000), tmp_path / "fast"
    assert (
        main(["distill", str(teacher), "--data", "digits", "--out", str(out), "--steps", "2000", "--num", "5000"]) == 0
    )
    rows = {(row["role"], row["evaluations"]): row for row in json.loads((out / "result.json").read_text())["rows"]}
    distances = {key: row["numbers"]["frechet"]["value"] for key, row in rows.items()}
    print(distances)
    assert distances["model", 1] <= 1.3 * distances["teacher", 35]
