"""Parameters that no objective reaches, which data-parallel training would wait for."""

import json

import numpy as np
import pytest
import torch
import yaml
from accelerate import Accelerator

from ctm import DiffusionModel
from ctm.objectives import DenoisingScoreMatching
from ctm.terminal.recipe_parser import parse_recipe
from ctm.training import assembly
from ctm.training.unused import fit_to_processes, takes_all, unused_parameters

from .runs import RECIPES, SMALL, finish, start, teacher_arguments, trained, weights

NARROW = {"channels": 8, "blocks": 1, "channel_mult": [1, 2], "attention": [8], "augment_dim": 9}
COUNT = 8


@pytest.fixture
def arguments(tmp_path) -> list[str]:
    """`ctm train` of the recipe cifar10-ctm at reduced width and cost, its objectives and augment_dim as shipped, with a random
    teacher on random pictures."""
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (COUNT, 16, 16, 3), dtype=np.uint8)
    np.savez(tmp_path / "set.npz", images=pixels, labels=np.arange(COUNT) % 10)
    network = {"shape": [3, 16, 16], "num_classes": COUNT, "s_embedding": False, **NARROW}
    described = {"class_path": "ctm.networks.DDPMpp", "init_args": network}
    DiffusionModel(described, shape=(3, 16, 16), num_classes=COUNT).save_pretrained(tmp_path / "teacher")
    objectives = yaml.safe_load((RECIPES / "cifar10-ctm.yaml").read_text())["objectives"]
    objectives[0]["init_args"] |= {"max_solver_steps": 1, "distance": {"class_path": "ctm.objectives.Squared"}}
    options = ["--data.name", str(tmp_path / "set.npz"), "--data.size", "16", "--data.batch_size", "4", "--steps", "2"]
    options += ["--teacher", str(tmp_path / "teacher"), f"--objectives={json.dumps(objectives)}", "--log_every", "1"]
    narrow = [word for key, value in NARROW.items() for word in (f"--network.init_args.{key}", json.dumps(value))]
    return ["--config", str(RECIPES / "cifar10-ctm.yaml"), *options, *narrow, "--seed", "3"]


def prepared(arguments, **changes):
    recipe, _ = parse_recipe(arguments)
    for name, value in changes.items():
        setattr(recipe, name, value)
    return assembly.prepare(recipe, Accelerator(cpu=True), assembly.load_data(recipe))


def test_case_11_the_augmentation_labels_row_is_found_and_frozen(arguments):
    run = prepared(arguments)
    state, generator = torch.get_rng_state(), [p.grad for p in run.student.parameters()]
    assert unused_parameters(run, 0) == {"network.augment_embedding.weight"}
    assert torch.equal(torch.get_rng_state(), state)
    assert [p.grad for p in run.student.parameters()] == generator
    (line,) = fit_to_processes(run)
    assert (
        line
        == "1 of the student's tensors take part in no objective and stay as they start: network.augment_embedding.weight"
    )
    frozen = [name for name, p in run.student.named_parameters() if not p.requires_grad]
    assert frozen == ["network.augment_embedding.weight"]
    assert run.accelerator.ddp_handler is None


def test_parameters_that_take_part_later_are_looked_for_in_each_step(arguments):
    """Before Matching starts, a network whose denoiser leaves out s has no gradient in its s branch."""

    class DenoisesWithoutS(torch.nn.Module):
        def __init__(self, network):
            super().__init__()
            self.network, self.last_layer = network, network.last

        def forward(self, x, t, s=None, labels=None):
            return self.network(x, t, None if s is not None and torch.equal(s, t) else s, labels)

    recipe, _ = parse_recipe(arguments)
    matching = recipe.objectives[0]
    network = recipe.network
    late = [type(matching)(**{**vars(matching), "start": 5}), DenoisingScoreMatching()]
    run = prepared(
        arguments, objectives=late, network=lambda shape, n: DenoisesWithoutS(network(shape, n)), start_from="random"
    )
    assert any("s_embedding" in name for name in unused_parameters(run, 0))
    (line,) = fit_to_processes(run)
    assert "1 of the student's tensors" in line
    assert run.accelerator.ddp_handler.find_unused_parameters


def test_one_process_says_after_its_first_step_what_stays_as_it_starts(tmp_path, capsys):
    """A diffusion model's s branch is never asked for. Without the branch nothing is said."""
    idle = ["--config", str(RECIPES / "digits-teacher.yaml"), *SMALL, "--network.init_args.s_embedding", "true"]
    trained(tmp_path / "idle", [*idle, "--steps", "2"])
    told = " ".join(capsys.readouterr().out.split())
    assert told.count("of the student's tensors take part in no objective and stay as they start: network.") == 1
    assert "s_affine" in told or "from_s" in told
    trained(tmp_path / "whole", teacher_arguments("--steps", "2"))
    assert "take part in no objective" not in capsys.readouterr().out


def test_nothing_is_said_before_all_objectives_take_part(arguments):
    recipe, _ = parse_recipe(arguments)
    matching = recipe.objectives[0]
    run = prepared(arguments, objectives=[type(matching)(**{**vars(matching), "start": 5}), DenoisingScoreMatching()])
    assert [takes_all(run, step) for step in (0, 4, 5, 6)] == [False, False, True, True]


@pytest.mark.slow
def test_case_11_two_processes_train_the_recipe_with_augmentation_labels(arguments, tmp_path):
    printed, _ = finish(start(arguments, tmp_path / "two", 2))
    assert printed.count("take part in no objective and stay as they start: network.augment_embedding.weight") == 1
    one, two = weights(trained(tmp_path / "one", arguments)), weights(tmp_path / "two")
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-5)
