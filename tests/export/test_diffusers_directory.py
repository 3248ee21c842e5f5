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


SIGMA_MIN = 0.002


@pytest.mark.parametrize("own", [True, False], ids=["ours", "theirs"])
def test_levels_are_those_that_jumps_start_from(model, pipeline, own):
    """With σ_min at the end or without, on both schedulers; and sampling begins at the first level."""
    if not own:
        pipeline.scheduler = FlowMapEulerDiscreteScheduler()
    for levels in ([80.0, 2.5], [10.0, 1.0, 0.3]):
        grid = torch.tensor([*levels, SIGMA_MIN])
        expected = generate(model, 3, grid=grid, seed=3, condition=1)
        for sigmas in (levels, [*levels, SIGMA_MIN]):
            for steps in (None, len(levels)):
                found = pipeline(3, steps, sigmas=sigmas, seed=3, class_labels=1, output_type="pt").images
                torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"num_inference_steps": 3, "sigmas": [80, 2.5, 0.002]},
            "are 2 jumps, the last of which ends at 0.002, and num_inf",
        ),
        ({"num_inference_steps": 1, "sigmas": [80, 2.5]}, "are 2 jumps"),
        ({"sigmas": [80, 2.5, 0]}, "stay above 0.002, where the last jump ends"),
        ({"sigmas": [2.5, 80]}, "they fall, from at most 80"),
        ({"sigmas": [100.0]}, "from at most 80"),
        ({"sigmas": [0.002]}, "levels of noise from which jumps start"),
        ({"num_inference_steps": 0}, "num_inference_steps is a number of jumps, at least 1, got 0"),
        ({"num_inference_steps": 2.5}, "num_inference_steps is a number of jumps, at least 1, got 2.5"),
        ({"seed": 1, "generator": torch.Generator()}, "seed and generator are two sources of the same noise"),
        ({"generator": [torch.Generator()]}, "generator is one torch.Generator for all images"),
        ({"seed": 1.5}, "seed is a whole number of at least 0"),
        (
            {"class_labels": "Sneakr"},
            r"class_labels must be one or 1 of −1 … 2 or of \['zero', 'one', 'two'\], got 'Sneakr'",
        ),
        ({"class_labels": 1.5}, "class_labels must be one or 1 of"),
        ({"class_labels": 12}, "class_labels must be one or 1 of"),
        ({"batch_size": 0}, "batch_size is a number of images, at least 1, got 0"),
        (
            {"conditions": {"y": torch.zeros(5)}},
            r"conditions\['y'\] has the shape \(1, 2\), a row for each image, got \(5,\)",
        ),
    ],
)
def test_what_makes_no_sense_is_a_sentence(pipeline, options, words):
    with pytest.raises(ValueError, match=words):
        pipeline(**options)


def test_the_scheduler_alone_refuses_a_contradiction(pipeline):
    with pytest.raises(
        ValueError, match=r"sigmas are 2 jumps, the last of which ends at 0\.002, and num_inference_steps is 3"
    ):
        pipeline.scheduler.set_timesteps(3, sigmas=[80, 2.5, 0.002])


def test_numbers_of_numpy_are_numbers(pipeline):
    found = pipeline(2, seed=np.int64(3), class_labels=np.array([1, 2]), output_type="pt").images
    assert torch.equal(found, pipeline(2, seed=3, class_labels=[1, 2], output_type="pt").images)


def test_classes_for_a_model_without_them_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    free = TrajectoryModel(MLP([1, 4, 4], width=8, blocks=1, embedding=8), shape=[1, 4, 4]).eval()
    export_diffusers(free, tmp_path / "made")
    loaded = DiffusionPipeline.from_pretrained(tmp_path / "made", trust_remote_code=True)
    with pytest.raises(ValueError, match="the model has no classes, leave class_labels out, got 3"):
        loaded(1, class_labels=3)


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


@pytest.mark.slow
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
