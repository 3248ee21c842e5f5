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
from ctm.distill import measures
from ctm.networks.adapters import own_tensors
from ctm.terminal.recipe_parser import parse_recipe
from ctm.training import assembly
from ctm.training.engine import set_checkpointing

from ..conftest import slow
from ..diffusers_models import UNET, made_random
from ..diffusers_training import DIGITS, train_ddpm
from ..training.runs import everything

SHORT_STEPS = 3
SHORT = ("--data", "digits", "--steps", str(SHORT_STEPS), "--batch_size", "8", "--num", "16", "--grid_points", "4")


@pytest.fixture(scope="module")
def directories(tmp_path_factory):
    """A pipeline of diffusers for each prediction, with random weights."""
    found = {}
    for prediction in ("epsilon", "v_prediction", "sample"):
        found[prediction] = tmp_path_factory.mktemp("teacher") / prediction
        scheduler = DDPMScheduler(prediction_type=prediction)
        DDPMPipeline(unet=made_random(UNet2DModel(**UNET)), scheduler=scheduler).save_pretrained(found[prediction])
    return found


@pytest.fixture(scope="module")
def distilled(directories, tmp_path_factory):
    """A short run of the command on the ε-predicting one, with a table that needs no feature network."""
    out = tmp_path_factory.mktemp("distilled") / "fast"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "feature_network", lambda images, wanted: (None, "none is here"))
        patch.setattr(measures, "FINE", 4)  # the teacher's flow is measured on short walks: nothing here looks at them
        patch.setattr(measures, "LEVELS", (4,))
        assert main(["distill", str(directories["epsilon"]), "--out", str(out), *SHORT]) == 0
    return out


def prepared(distilled, directory, **changes):
    """The run of the recipe that distill wrote, before its first step; on another teacher of the same shape."""
    settings = yaml.safe_load((distilled / "recipe.yaml").read_text()) | changes | {"teacher": str(directory)}
    inner = load_teacher(directory, sigma_data=lambda shape: (0.5, "")).inner
    if directory.name != "epsilon":
        settings["model"]["inner"] = inner.as_json()
        settings["network"]["init_args"].pop("outputs")
    recipe, _ = parse_recipe(["--config", yaml.safe_dump(settings)])
    return assembly.prepare(recipe, Accelerator(cpu=True), assembly.load_data(recipe))


def test_the_recipe_has_the_teachers_backbone_and_preconditioning(distilled, directories):
    settings = yaml.safe_load((distilled / "recipe.yaml").read_text())
    assert settings["network"]["class_path"] == "ctm.networks.DiffusersNetwork"
    assert settings["network"]["init_args"]["student"] is True
    assert settings["data"]["unlabelled"] is True
    assert settings["network"]["init_args"]["outputs"] == 2
    assert settings["model"]["inner"]["prediction"] == "epsilon and sample"
    assert "clip_gradient_norm" not in settings["engine"]  # with two outputs no error grows
    assert settings["objectives"][0]["init_args"]["start"] == SHORT_STEPS // 8
    trained = load_model(distilled)  # without its teacher
    assert type(trained.network).__name__ == "DiffusersNetwork"
    assert trained.inner.as_json() == settings["model"]["inner"]
    assert json.loads((distilled / "result.json").read_text())["rms_to_teacher"].keys() == {"1", "2", "4"}


@pytest.mark.parametrize(
    ("prediction", "lora"),
    [
        ("epsilon", False),
        ("v_prediction", True),
        ("sample", False),
        slow("epsilon", True),
        slow("v_prediction", False),
        slow("sample", True),
    ],
)
def test_the_student_is_the_teacher_at_the_start(distilled, directories, prediction, lora):
    """g(x, t, s) = D(x, t) for every s, to rounding (1e-6 of each term's size, |x| is about σ). Where the teacher predicts ε, its
    share is w = σ_d²/(σ² + σ_d²), and the second output's the rest, which is zero. From then on s is learned."""
    run = prepared(distilled, directories[prediction], **({"lora": {"rank": 2}} if lora else {}))
    teacher = load_teacher(directories[prediction], sigma_data=lambda shape: (run.teacher.sigma_data, ""))
    levels = torch.tensor([0.011, 0.3, 2.0, 40.0, 150.0])
    scale = (1 + levels).view(-1, 1, 1, 1)
    x = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(1)) * scale
    with torch.no_grad():
        expected, student = teacher.denoise(x, levels), run.student.eval()
        if prediction == "epsilon":
            expected = (1 + (levels / student.sigma_data) ** 2).reciprocal().view(-1, 1, 1, 1) * expected
        for s in (levels, 0.9 * levels, torch.full_like(levels, run.student.sigma_min)):
            assert float(((student.g(x, levels, s) - expected).abs() / scale).max()) < 1e-6
        for name, weight in student.named_parameters():
            if name.endswith("s_second.weight"):
                weight += 0.1
        assert float((student.g(x, levels, 0.5 * levels) - expected).abs().max()) > 1e-3


def test_the_recipe_is_run_by_train_to_the_same_bits(distilled, tmp_path):
    assert main(["train", "--config", str(distilled / "recipe.yaml"), "--out", str(tmp_path / "again")]) == 0
    assert everything(tmp_path / "again") == everything(distilled)


@pytest.mark.parametrize("lora", [False, slow(True)])
def test_blocks_computed_again_have_the_same_gradients(distilled, directories, lora):
    """diffusers' own gradient checkpointing under `engine.checkpoint_gradients`."""
    gradients = []
    for again in (False, True):
        run = prepared(distilled, directories["epsilon"], **({"lora": {"rank": 2}} if lora else {}))
        generator = torch.Generator().manual_seed(2)
        with torch.no_grad():
            for tensor in own_tensors(run.student).values():
                tensor += 0.05 * torch.randn(tensor.shape, generator=generator)
        if again:
            set_checkpointing(run.student.network)
        x, t = torch.randn(3, 1, 8, 8, generator=generator), torch.tensor([0.1, 1.0, 30.0])
        run.student.train().jump(x, t, t / 2).square().mean().backward()
        gradients.append({name: p.grad for name, p in run.student.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert len(gradients[0]) > 20
    for name, value in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], value, rtol=1e-5, atol=1e-6 * float(value.abs().max() + 1e-12))


@pytest.mark.slow
def test_a_ddpm_of_diffusers_is_distilled_to_one_step(tmp_path):
    """A DDPM of digits, trained by diffusers' own loop, distilled: one step within 1.3 times its Fréchet distance to the digits
    at 35 evaluations, by the features of the digits' classifier from 5,000 samples."""
    small = DIGITS | {"block_out_channels": [16, 32], "norm_num_groups": 4}
    teacher, out = train_ddpm(tmp_path / "ddpm", 1500, rate=2e-3, config=small), tmp_path / "fast"
    length = ("--steps", "4000", "--batch_size", "64", "--num", "5000")  # 20 to 60 busy minutes of a core
    assert main(["distill", str(teacher), "--data", "digits", "--out", str(out), *length]) == 0
    rows = {(row["role"], row["evaluations"]): row for row in json.loads((out / "result.json").read_text())["rows"]}
    distances = {key: row["numbers"]["frechet"]["value"] for key, row in rows.items()}
    print(distances)
    assert distances["model", 1] <= 1.3 * distances["teacher", 35]
