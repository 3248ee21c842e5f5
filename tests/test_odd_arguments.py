"""Arguments that nobody means: each is refused in a sentence, or one line says what comes of it."""

import logging
import math
from pathlib import Path

import pytest
import torch

import ctm
from ctm import guidance, sampling
from ctm.data import load_images
from ctm.models.guided import AtGuidance
from ctm.networks import MLP
from ctm.noise import to_zero
from ctm.sampling.driving import drive_together

from .conftest import mixture, random_weights

GRID = ctm.karras_grid(2)
X = torch.ones(2, 2)


def small(**options):
    return random_weights(
        ctm.TrajectoryModel(MLP((2,), 3, width=8, blocks=1, embedding=8, **options), shape=(2,), num_classes=3)
    )


CTM = small()


class NoShape:
    def denoise(self, x, t, condition=None):
        return x * 0


class Endless(NoShape):
    shape = (2, -1)


@pytest.mark.parametrize("model", [lambda x, t, condition=None: x * 0, NoShape(), Endless(), None])
def test_a_model_without_a_shape_is_told_what_is_missing(model):
    with pytest.raises(ValueError, match="does not say the shape of a sample: give it shape, a tuple such as"):
        ctm.generate(model, 2, grid=GRID, sampler=sampling.heun)


@pytest.mark.parametrize("grid", [torch.tensor(80.0), torch.tensor([]), torch.tensor([80.0]), torch.ones(2, 2)])
def test_a_grid_of_no_levels(grid):
    with pytest.raises(ValueError, match="grid must hold at least two noise levels"):
        ctm.generate(CTM, 2, grid=grid)


@pytest.mark.parametrize(
    ("levels", "line"),
    [
        ([160.0, 1.0, 0.002], "the grid starts at 160, above the model's sigma_max = 80"),
        ([80.0, 1.0, 0.001], "the grid goes down to 0.001, below the model's sigma_min = 0.002"),
        ([80.0, 1.0, 0.002], None),
        ([79.0, 1.0, 0.0], None),
    ],
)
def test_a_grid_beyond_the_models_levels_is_said_once(caplog, levels, line):
    with caplog.at_level(logging.WARNING, "ctm"):
        made = ctm.generate(CTM, 5, grid=torch.tensor(levels), sampler=sampling.heun, batch_size=2)
    assert made.shape == (5, 2)
    assert len(caplog.messages) == (line is not None)
    assert line is None or line in caplog.text


def test_the_models_own_grids_pass_in_silence(caplog):
    with caplog.at_level(logging.WARNING, "ctm"):
        ctm.generate(CTM, 2, grid=ctm.karras_grid(3, CTM.sigma_min, CTM.sigma_max, dtype=torch.float32))
    assert caplog.messages == []


SAMPLERS = {
    "gamma": lambda noise: sampling.gamma(CTM, X, GRID, gamma=0.5, noise=noise),
    "consistency": lambda noise: sampling.consistency(CTM, X, GRID, noise=noise),
    "two_level": lambda noise: sampling.two_level(CTM, X, torch.tensor([80.0, 0.5, 2.0, 0.002]), noise=noise),
    "restore": lambda noise: sampling.restore(CTM, X, GRID, X, lambda x: x, noise=noise),
    "heun": lambda noise: sampling.heun(CTM, X, to_zero(GRID), churn=2.0, noise=noise),
    "midpoint": lambda noise: sampling.midpoint(CTM, X, to_zero(GRID), churn=2.0, noise=noise),
    "ancestral": lambda noise: sampling.ancestral(CTM, X, GRID, noise=noise),
    "dpmpp_2m_sde": lambda noise: sampling.dpmpp_2m_sde(CTM, X, GRID, noise=noise),
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_what_a_users_noise_gives_is_looked_at(name):
    sample = SAMPLERS[name]
    for wrong in (None, X.numpy(), torch.ones(()), torch.ones(1, 2), torch.ones(3, 2), X.double(), X.long(), 0.0):
        with pytest.raises(ValueError, match=r"noise\(x\) must give a tensor like x, torch.float32 of shape \(2, 2\)"):
            sample(lambda x, wrong=wrong: wrong)
    for wrong in (X, 0.5, "normal"):
        with pytest.raises(ValueError, match="noise is a function"):
            sample(wrong)
    assert sample(lambda x: torch.ones_like(x)).shape == X.shape


def begun():
    steps = sampling.heun.steps(X, GRID)
    next(steps)
    return steps


def ended():
    steps = sampling.heun.steps(X, GRID)
    steps.close()
    return steps


@pytest.mark.parametrize(
    ("plans", "sentence"),
    [
        (lambda: [X], "plan 0 is no generator of requests"),
        (lambda: [sampling.heun.steps(X, GRID), None], "plan 1 is no generator of requests"),
        (lambda: [sampling.heun.steps], "plan 0 is no generator of requests"),
        (lambda: [sampling.heun.steps(X, GRID)] * 2, "plans 0 and 1 are the same generator"),
        (lambda: [begun()], "plan 0 has begun already"),
        (lambda: [ended()], "plan 0 has ended already"),
        (lambda: sampling.heun.steps(X, GRID), "plans is a list of generators"),
        (lambda: None, "plans is a list of generators"),
    ],
)
def test_plans_that_cannot_be_driven_together(plans, sentence):
    with pytest.raises(ValueError, match=sentence):
        drive_together(CTM, plans())


@pytest.mark.parametrize("size", [0, -1, 1.5, None, "8", True, math.nan])
def test_batches_of_no_size(size):
    with pytest.raises(ValueError, match="batch_size must be a whole number of at least 1"):
        drive_together(CTM, [sampling.heun.steps(X, GRID)], batch_size=size)


def test_no_plans_are_driven_to_no_results():
    assert drive_together(CTM, []) == []


@pytest.mark.parametrize(
    "load",
    [ctm.load_model, ctm.load_teacher, ctm.TrajectoryModel.from_pretrained, load_images],
    ids=lambda load: load.__qualname__,
)
def test_what_names_no_model_and_no_data(load):
    for wrong in (None, b"models/digits-ctm", 3, ["models/digits-ctm"], CTM):
        with pytest.raises(TypeError, match="is given as a text or a path, got"):
            load(wrong)
    for wrong in ("", "  ", "a\0b"):
        with pytest.raises(ValueError, match="cannot be named"):
            load(wrong)


def test_a_path_may_be_of_any_class(tmp_path):
    class Place:
        def __fspath__(self):
            return str(tmp_path / "model")

    CTM.save_pretrained(tmp_path / "model")
    assert ctm.load_model(Place()).shape == (2,)
    assert ctm.load_teacher(Path(Place())).shape == (2,)


@pytest.mark.parametrize("model", [CTM, mixture(2), lambda x, t: x, AtGuidance(small(guidance_embedding=True), 2.0)])
def test_limits_of_guidance_need_guidance(model):
    with pytest.raises(ValueError, match="is no guided model: put a guided one in"):
        guidance.Limited(model, 0.1, 10)


@pytest.mark.parametrize("name", ["denoise", "jump", "heun", "gamma"])
def test_tensors_without_plain_numbers(name):
    call = {
        "denoise": lambda x: CTM.denoise(x, 1.0),
        "jump": lambda x: CTM.jump(x, 1.0, 0.5),
        "heun": lambda x: sampling.heun(CTM, x, GRID),
        "gamma": lambda x: sampling.gamma(CTM, x, GRID),
    }[name]
    with pytest.raises(ValueError, match=r"x must be a dense tensor, got torch.sparse_coo: x.to_dense"):
        call(X.to_sparse())
    with pytest.raises(ValueError, match="x is on meta and the model on cpu: bring x there by"):
        call(X.to("meta"))


SCALES = {
    "classifier-free": lambda scale: guidance.ClassifierFree(CTM, scale),
    "at guidance": lambda scale: AtGuidance(small(guidance_embedding=True), scale),
}


@pytest.mark.parametrize("kind", SCALES)
def test_scales_of_guidance(kind):
    guided = SCALES[kind]
    for wrong in (math.nan, [1.0, math.nan], [math.inf, 1.0]):
        with pytest.raises(ValueError, match=r"must be (a )?finite"):
            guided(torch.tensor(wrong))
    for wrong in (torch.ones(2, 1), torch.ones(1, 1), torch.tensor([True, False])):
        with pytest.raises(ValueError, match=r"scale is one number, or a tensor \(B,\)"):
            guided(wrong)
    labels = torch.tensor([0, 1])
    with pytest.raises(ValueError, match="the guidance has scales for 3 samples, and the call is on 2"):
        guided(torch.ones(3)).denoise(X, 1.0, labels)
    assert torch.isfinite(guided(torch.tensor([2, 3])).denoise(X, 1.0, labels)).all()
    assert torch.isfinite(guided(torch.tensor(2.0)).denoise(X, 1.0, labels)).all()


@pytest.mark.parametrize("share", [[0.5, math.nan], [-0.1, 0.5], [0.5, 1.1], [math.inf, 0.0]])
def test_shares_between_labels(share):
    with pytest.raises(ValueError, match=r"share must be in \[0, 1\]"):
        guidance.BetweenConditions(CTM, torch.tensor([0, 1]), torch.tensor(share))


def test_labels_between_labels_are_whole():
    with pytest.raises(ValueError, match="labels must be whole numbers"):
        guidance.BetweenConditions(CTM, torch.tensor([0.0, 1.0]), torch.tensor([0.0, 1.0]))


@pytest.mark.parametrize("wrong", ["heun", 3])
def test_a_sampler_is_a_function(wrong):
    with pytest.raises(ValueError, match=r"sampler is a function such as ctm.sampling.heun"):
        ctm.generate(CTM, 2, sampler=wrong, grid=GRID)


@pytest.mark.parametrize("made", [None, 3, torch.ones(1, 2), torch.ones(2)])
def test_what_a_sampler_gives_is_looked_at(made):
    with pytest.raises(ValueError, match=r"the sampler must give the state at the end, of shape \(2, 2\)"):
        ctm.generate(CTM, 2, sampler=lambda *_, **__: made, grid=GRID)


def test_a_gamma_that_is_not_used_is_said(caplog):
    ctm.generate(CTM, 2, sampler=sampling.heun, grid=GRID, gamma=0.5)
    assert caplog.messages == ["gamma 0.5 is not used: it belongs to γ-sampling, and another sampler is given"]


def test_a_callback_is_a_function():
    with pytest.raises(ValueError, match="callback is a function of a Step, got 3"):
        sampling.heun(CTM, X, GRID, callback=3)


def test_no_guidance_of_no_model():
    with pytest.raises(ValueError, match=r"a model has denoise\(x, t, condition\) or is callable"):
        guidance.ClassifierFree(None, 2.0)


@pytest.mark.parametrize(
    ("guided", "sentence"),
    [
        (lambda: guidance.LossGuided(CTM, lambda x: torch.zeros(2)), "do not depend on the image"),
        (lambda: guidance.LossGuided(CTM, lambda x: None), "a loss gives one number for each of 2 samples, got None"),
        (lambda: guidance.LossDescent(CTM, lambda x: torch.zeros(2), rate=1.0), "do not depend on the image"),
        (lambda: guidance.ClassifierGuided(CTM, lambda x: torch.zeros(2, 3)), "do not depend on the image"),
        (lambda: guidance.ClassifierGuided(CTM, lambda x: x[:, :1]), r"gives logits of shape \(2, 1\)"),
        (lambda: guidance.ClassifierGuided(CTM, lambda x: x[:, 0]), r"gives logits of shape \(2,\)"),
    ],
)
def test_losses_and_classifiers_that_guide_nothing(guided, sentence):
    with pytest.raises(ValueError, match=sentence):
        guided().denoise(X, 1.0, torch.tensor([0, 2]))
