"""A directory of diffusers through the commands: convert, sample, evaluate, train; without the original."""

import json
import shutil

import diffusers
import numpy as np
import pytest
import torch

from ctm import load_model
from ctm.data import load_images
from ctm.training.levels import measured_deviation

from ..diffusers_models import UNET, made_random
from ..training.runs import RECIPES, SMALL
from .test_cli import run, sentence

SCHEDULER = {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 20, "prediction_type": "v_prediction"}


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    place = tmp_path_factory.mktemp("diffusers") / "pipe"
    network = made_random(diffusers.UNet2DModel(**UNET))
    diffusers.DDPMPipeline(network, diffusers.DDPMScheduler(**SCHEDULER)).save_pretrained(place)
    return place


def test_convert_writes_a_model_that_needs_the_original_no_more(capsys, pipeline, tmp_path):
    original, out = tmp_path / "pipe", tmp_path / "ours"
    shutil.copytree(pipeline, original)
    code, printed, _ = run(capsys, "convert", original, out, "--data", "digits")
    deviation = measured_deviation(load_images("digits"))[0]
    assert code == 0
    assert printed.splitlines() == [
        "found: a diffusion model of diffusers: UNet2DModel of a DDPMPipeline, 8×8 with 1 channels, no classes, "
        "0.045 million parameters",
        "found: between two timesteps the network is asked at a fractional one, linear in ln sigma",
        "told by the file: prediction: v, at 20 timesteps of the squaredcos_cap_v2 β schedule",
        f"told by the file: sigma_min = {load_model(out).sigma_min:.6g}, the first level of the schedule",
        f"told by the file: sigma_max = {load_model(out).sigma_max:.6g}, the last level of the schedule",
        f"assumed: sigma_data = {deviation:g} (measured, the standard deviation of digits at 8×8)",
        "left out: settings of diffusers' sampler, kept in config.json and not applied by ours: clip_sample = True, "
        "clip_sample_range = 1.0, thresholding = False, dynamic_thresholding_ratio = 0.995, sample_max_value = 1.0, "
        "timestep_spacing = leading, steps_offset = 0, variance_type = fixed_small",
        f"written: {out}",
    ]
    shutil.rmtree(original)
    code, _, err = run(capsys, "sample", out, "--num", 2, "--steps", 2, "--out", tmp_path / "s.npz")
    assert (code, err.strip()) == (0, "")


def test_convert_asks_for_what_a_config_does_not_say(capsys, pipeline, tmp_path):
    said = sentence(capsys, "convert", pipeline, tmp_path / "out")
    assert "sigma_data: a config of diffusers has none. Give --set sigma_data=" in said
    assert not (tmp_path / "out").exists()
    wrong = ["--preset", "edm-cifar10"]
    assert "--preset is for checkpoint files" in sentence(capsys, "convert", pipeline, tmp_path / "out", *wrong)
    wrong = ["--set", "sigma_data=0.5", "--set", "qkv_order=three-heads-dim"]
    said = sentence(capsys, "convert", pipeline, tmp_path / "out", *wrong)
    assert "qkv_order has no meaning for a model of diffusers" in said


def test_sample_takes_the_directory_itself(capsys, pipeline, tmp_path):
    ours = tmp_path / "ours"
    assert run(capsys, "convert", pipeline, ours, "--set", "sigma_data=0.5")[0] == 0
    pixels = []
    for name, model in (("a", pipeline), ("b", ours)):
        assert run(capsys, "sample", model, "--num", 3, "--steps", 3, "--out", tmp_path / f"{name}.npz")[0] == 0
        pixels.append(np.load(tmp_path / f"{name}.npz")["arr_0"])
    assert np.array_equal(*pixels)


@pytest.mark.slow
def test_evaluate_takes_the_directory_itself(capsys, pipeline, tmp_path):
    np.savez(tmp_path / "data.npz", images=load_images("digits").pixels[:24])
    options = ["--data", tmp_path / "data.npz", "--num", 24, "--steps", 2, "--rows", 24, "--side", 32]
    code, _, err = run(capsys, "evaluate", pipeline, *options, "--out", tmp_path / "report")
    assert code == 0, err
    assert json.loads((tmp_path / "report" / "result.json").read_text())


def test_train_distils_it_into_a_network_of_ours(capsys, pipeline, tmp_path):
    """The student takes the teacher's levels, and its sigma_data from the data."""
    options = ["--teacher", pipeline, "--start_from", "random", "--steps", 2, "--out", tmp_path / "run"]
    code, _, err = run(capsys, "train", "--config", RECIPES / "digits-ctm.yaml", *SMALL, *options)
    assert code == 0, err
    student = load_model(tmp_path / "run")
    assert student.inner == "edm"
    assert torch.isfinite(student.jump(80 * torch.randn(2, 1, 8, 8), student.sigma_max, student.sigma_min)).all()


@pytest.mark.slow
def test_train_starts_a_student_of_the_teachers_own_kind_as_the_teacher(capsys, pipeline, tmp_path):
    teacher = tmp_path / "teacher"
    assert run(capsys, "convert", pipeline, teacher, "--set", "sigma_data=0.5")[0] == 0
    config = json.loads((teacher / "config.json").read_text())
    arguments = config["network"]["init_args"]
    network = {"kind": arguments["kind"], "config": arguments["config"], "student": True}
    recipe = {
        "data": {"name": "digits", "batch_size": 8},
        "model": {"inner": config["inner"]},
        "network": {"class_path": "ctm.networks.DiffusersNetwork", "init_args": network},
        "teacher": str(teacher),
        "objectives": [{"class_path": "ctm.objectives.Matching", "init_args": {"kind": "soft", "grid_points": 4}}],
        "optimizer": {"class_path": "torch.optim.RAdam", "init_args": {"lr": 1.0e-3}},
        "steps": 1,
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    code, printed, err = run(capsys, "train", "--config", tmp_path / "recipe.yaml", "--out", tmp_path / "run")
    assert code == 0, err
    assert "are a student's own layers and new" in printed + err
    assert "the network takes no labels: those of digits are left out" in printed + err
    student = load_model(tmp_path / "run")
    assert student.inner.as_json() == config["inner"]
    recipe["model"]["inner"] = "edm"
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    said = sentence(capsys, "train", "--config", tmp_path / "recipe.yaml", "--out", tmp_path / "other")
    assert "set model.inner to the teacher's" in said
