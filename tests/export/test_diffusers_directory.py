"""The exported pipeline's images are `ctm.generate`'s, with ctm-torch and without it."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, FlowMapEulerDiscreteScheduler

from ctm import TrajectoryModel, generate
from ctm.export import export_diffusers
from ctm.models.grids import TunedGrid
from ctm.networks import MLP

from ..conftest import random_weights

NAMES = ["zero", "one", "two"]


@pytest.fixture(scope="module")
def model():
    network = MLP([1, 4, 4], 3, width=16, blocks=1, embedding=8, arrays={"y": [2]})
    made = TrajectoryModel(random_weights(network), shape=[1, 4, 4], num_classes=3).eval()
    made.class_names = NAMES
    return made


@pytest.fixture(scope="module")
def directory(model, tmp_path_factory):
    out = tmp_path_factory.mktemp("pipeline") / "made"
    export_diffusers(model, out)
    return out


@pytest.fixture
def pipeline(directory, tmp_path, monkeypatch):
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    loaded = DiffusionPipeline.from_pretrained(directory, trust_remote_code=True)
    loaded.set_progress_bar_config(disable=True)
    return loaded


@pytest.mark.parametrize(("steps", "gamma"), [(1, 0.0), (4, 0.0), (4, 0.5), (3, 1.0)])
def test_its_images_are_those_of_generate(model, pipeline, steps, gamma):
    found = pipeline(5, steps, gamma=gamma, seed=3, class_labels="two", output_type="pt").images
    torch.testing.assert_close(
        found, generate(model, 5, steps=steps, gamma=gamma, seed=3, condition=2), rtol=0, atol=1e-4
    )


def test_seeds_classes_and_fields_are_those_of_generate(model, pipeline):
    drawn = pipeline(4, 2, seed=9, output_type="pt").images
    torch.testing.assert_close(drawn, generate(model, 4, steps=2, seed=9), rtol=0, atol=1e-4)
    y = torch.randn(3, 2)
    labels = torch.tensor([0, -1, 2])
    found = pipeline(3, 2, seed=[5, 6, 7], class_labels=[0, -1, 2], conditions={"y": y}, output_type="pt").images
    expected = generate(model, 3, steps=2, seed=[5, 6, 7], condition={"labels": labels, "y": y})
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    with pytest.raises(ValueError, match="takes no condition z: it takes labels, y, y_present"):
        pipeline(1, conditions={"z": y})


def test_diffusers_own_scheduler_takes_the_same_jumps(model, pipeline):
    pipeline.scheduler = FlowMapEulerDiscreteScheduler()
    for steps in (1, 4):
        found = pipeline(3, steps, seed=3, class_labels=1, output_type="pt").images
        torch.testing.assert_close(found, generate(model, 3, steps=steps, seed=3, condition=1), rtol=0, atol=1e-4)
    with pytest.raises(ValueError, match="FlowMapEulerDiscreteScheduler takes no gamma"):
        pipeline(1, gamma=0.5)


def test_pictures_callbacks_and_a_generator(pipeline):
    seen = []

    def keep(pipe, index, timestep, values):
        seen.append((index, round(float(timestep), 3)))
        return {}

    pictures = pipeline(
        2, 3, class_labels=0, generator=torch.Generator().manual_seed(1), callback_on_step_end=keep
    ).images
    assert [index for index, _ in seen] == [0, 1, 2]
    assert seen[0][1] == round(1000 * 80 / 81, 3)
    assert [picture.size for picture in pictures] == [(4, 4), (4, 4)]
    again = pipeline(2, 3, class_labels=0, generator=torch.Generator().manual_seed(1), output_type="np").images
    assert np.array_equal(np.asarray(pictures[0]), (again[0, ..., 0] * 255).round().astype(np.uint8))


def test_a_tuned_grid_goes_along(model, tmp_path, monkeypatch):
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    tuned = TrajectoryModel(model.network, shape=[1, 4, 4], num_classes=3).eval()
    known = {"before": 1.0, "before_error": 0.1, "after": 0.5, "after_error": 0.1, "gain": 0.5, "gain_error": 0.1}
    tuned.grids = {2: TunedGrid(levels=(80.0, 1.5, 0.002), gamma=0.25, measure="distance", **known)}
    export_diffusers(tuned, tmp_path / "made")
    loaded = DiffusionPipeline.from_pretrained(tmp_path / "made", trust_remote_code=True)
    found = loaded(3, 2, seed=3, class_labels=1, output_type="pt").images
    torch.testing.assert_close(found, generate(tuned, 3, steps=2, seed=3, condition=1), rtol=0, atol=1e-4)


WITHOUT = """
import sys
sys.modules["ctm"] = None  # as where ctm-torch is not installed
import numpy, torch
from diffusers import DiffusionPipeline
pipeline = DiffusionPipeline.from_pretrained(sys.argv[1], trust_remote_code=True)
y = torch.ones(3, 2)
images = pipeline(3, 4, gamma=0.5, seed=3, class_labels="one", conditions={"y": y}, output_type="pt").images
numpy.save(sys.argv[2], images.numpy())
"""


@pytest.mark.slow
def test_without_ctm_torch_the_images_are_the_same(model, directory, tmp_path):
    environment = {"HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1", "PATH": "", "OMP_NUM_THREADS": "1"}
    arguments = [sys.executable, "-c", WITHOUT, str(directory), str(tmp_path / "x.npy")]
    done = subprocess.run(arguments, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    condition = {"labels": torch.tensor([1, 1, 1]), "y": torch.ones(3, 2)}
    expected = generate(model, 3, steps=4, gamma=0.5, seed=3, condition=condition)
    np.testing.assert_allclose(np.load(tmp_path / "x.npy"), expected.numpy(), rtol=0, atol=1e-4)


def test_a_place_that_is_taken_is_left_as_it_is(model, tmp_path):
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "mine").write_text("mine")
    with pytest.raises(FileExistsError, match="made is there already and not empty"):
        export_diffusers(model, tmp_path / "made")
    assert (tmp_path / "made" / "mine").read_text() == "mine"
