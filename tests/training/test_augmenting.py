"""A teacher trained with EDM's augmentation: its network is told, the run goes on with the same draws, and others are refused."""

import json
import re

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from ctm import DiffusionModel, load_model
from ctm.arguments import inside
from ctm.cli import main
from ctm.conditions import AUGMENT, dropped
from ctm.networks import DDPMpp
from ctm.noise import karras_grid, to_zero
from ctm.objectives import DenoisingScoreMatching, Networks
from ctm.sampling import generate, heun
from ctm.terminal.recipe_parser import parse_recipe
from ctm.training import assembly
from ctm.training.unused import unused_parameters

from .runs import everything, finish, start, trained, weights

NETWORK = {"channels": 8, "channel_mult": [1, 1], "blocks": 1, "attention": [], "s_embedding": False}


def recipe(*extra, augment="0.5", **network):
    return [
        *("--model.kind", "diffusion", "--network.class_path", "DDPMpp", "--objectives", "[DenoisingScoreMatching]"),
        *("--network.init_args", json.dumps({**NETWORK, "augment_dim": 9, **network}), "--data.augment", augment),
        *("--data.name", "digits", "--data.batch_size", "8", "--steps", "4", "--optimizer", "torch.optim.SGD"),
        *("--optimizer.init_args.lr", "1e-3", *extra),
    ]


def model(**network):
    torch.manual_seed(0)
    made = DDPMpp((1, 8, 8), 10, **{**NETWORK, "augment_dim": 9, **network})
    with torch.no_grad():
        for weight in made.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    return DiffusionModel(made, shape=(1, 8, 8), num_classes=10).eval()


def test_the_network_is_told_in_training_and_hears_nothing_when_it_is_sampled():
    """The loss is of the network called with its labels; without labels it is the network at labels of 0."""
    teacher, objective = model(), DenoisingScoreMatching()
    generator = torch.Generator().manual_seed(0)
    x0, augment = torch.randn(6, 1, 8, 8, generator=generator), torch.randn(6, 9, generator=generator)
    draw = objective.draw(teacher, x0, generator)
    condition = {"labels": torch.arange(6), AUGMENT: augment}
    with inside(), torch.no_grad():
        loss = objective(Networks(teacher, None, None), x0, condition, draw)
        x, level = x0 + draw.sigma.view(-1, 1, 1, 1) * draw.noise, draw.sigma
        c_skip, c_out, c_in = (part.view(-1, 1, 1, 1) for part in teacher.preconditioning.scalings(level))
        told = teacher.network(c_in * x, teacher.preconditioning.level(level), None, torch.arange(6), augment=augment)
        error = (x0 - (c_skip * x + c_out * told)).square().flatten(1).mean(1)
        zeros = teacher.denoise(x, level, {"labels": torch.arange(6), AUGMENT: torch.zeros(6, 9)})
        assert not torch.allclose(teacher.denoise(x, level, condition), zeros, atol=1e-3)
    torch.testing.assert_close(loss, objective.weight(level, level, 0.5) * error)
    torch.testing.assert_close(teacher.denoise(x, level, torch.arange(6)), zeros)


def test_dropping_the_condition_leaves_the_labels_of_what_was_done():
    augment = torch.ones(3, 9)
    kept = dropped({"labels": torch.arange(3), AUGMENT: augment}, torch.tensor([True, False, True]))
    assert kept["labels"].tolist() == [-1, 1, -1]
    assert kept.keys() == {"labels", AUGMENT}


def test_a_run_that_goes_on_draws_the_same_and_its_model_samples(tmp_path):
    often = ("--checkpoint_every", "2", "--condition_dropout", "0.2")
    whole = trained(tmp_path / "whole", recipe(*often))
    trained(tmp_path / "half", recipe(*often, "--steps", "2"))
    assert everything(trained(tmp_path / "half", recipe(*often))) == everything(whole)
    off = trained(tmp_path / "off", recipe(*often, augment="0"))
    assert everything(off)["model"] != everything(whole)["model"]
    made = load_model(whole)
    grid = to_zero(karras_grid(2, made.sigma_min, made.sigma_max))
    x = generate(made, 2, grid=grid, sampler=heun, condition=torch.tensor([1, 2]))
    assert x.isfinite().all()


def test_several_processes_keep_the_weights_of_the_labels(tmp_path):
    """Before a run of several processes, weights that nothing reaches are frozen: these are not among them."""
    made, _ = parse_recipe(recipe())
    run = assembly.prepare(made, Accelerator(cpu=True), assembly.load_data(made))
    assert unused_parameters(run, 0) == set()


@pytest.mark.slow
def test_two_processes_make_the_steps_of_one(tmp_path):
    finish(start(recipe(), tmp_path / "two", 2))
    one, two = weights(trained(tmp_path / "one", recipe())), weights(tmp_path / "two")
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (recipe(augment_dim=0), "set network.init_args.augment_dim to 9"),
        (recipe(augment_dim=7), "set network.init_args.augment_dim to 9"),
        (recipe(augment="1.5"), r"data.augment must be in \[0, 1\], got 1.5"),
        (recipe("--model.kind", "trajectory"), "is for the training of a teacher"),
        (recipe("--data.name", "ITS.npy"), "data.augment turns and moves pictures"),
    ],
    ids=["none", "seven", "share", "student", "values"],
)
def test_what_does_not_fit_is_refused_in_a_sentence(arguments, words, tmp_path, capsys):
    np.save(tmp_path / "values.npy", np.random.default_rng(0).normal(size=(9, 1, 8, 8)).astype(np.float32))
    named = [str(tmp_path / "values.npy") if part == "ITS.npy" else part for part in arguments]
    assert main(["train", *named, "--out", str(tmp_path / "run")]) == 2
    assert re.search(words, capsys.readouterr().err)
