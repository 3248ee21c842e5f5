"""Blocks that are computed again in the backward pass: the same gradients, from less memory."""

import copy

import pytest
import torch

from ctm import TrajectoryModel
from ctm.networks import ADM, MLP, DDPMpp, DhariwalUNet, NCSNpp
from ctm.objectives import DenoisingScoreMatching, Matching
from ctm.teachers import GaussianMixture
from ctm.terminal.recipe_parser import parse_recipe
from ctm.training import dry_run
from ctm.training.ema import frozen_copy
from ctm.training.engine import EngineSettings, set_checkpointing
from ctm.training.step import LossModule, backward, draw_batch

from ..conftest import random_weights
from .runs import student_arguments, teacher_arguments, trained, weights

SHAPE, CLASSES, ROWS = (1, 8, 8), 4, 6
UNET = {"channels": 16, "channel_mult": [1, 2], "blocks": 1, "attention": [4]}
NETWORKS = {
    "MLP": lambda: MLP(SHAPE, CLASSES, width=64, blocks=3, embedding=16, dropout=0.3),
    "DDPMpp": lambda: DDPMpp(SHAPE, CLASSES, **UNET, dropout=0.3),
    "NCSNpp": lambda: NCSNpp(SHAPE, CLASSES, **UNET),
    "DhariwalUNet": lambda: DhariwalUNet(SHAPE, CLASSES, **UNET),
    "ADM": lambda: ADM(SHAPE, CLASSES, **{**UNET, "channels": 32}),
}


def gradients(model: TrajectoryModel, outer: str, *, other=lambda target: None) -> tuple[dict[str, torch.Tensor], int]:
    """(gradients of a step of matching and score matching, bytes that autograd kept for the backward pass). other: changes the
    target."""
    teacher = GaussianMixture(
        torch.linspace(-1, 1, CLASSES).view(-1, 1, 1, 1).expand(-1, *SHAPE), 0.5, torch.ones(CLASSES)
    )
    objectives = [Matching(grid_points=8, max_solver_steps=2, estimate_outer=outer), DenoisingScoreMatching()]
    module, target = LossModule(model, objectives).train(), frozen_copy(model)
    other(target)
    model.zero_grad()
    generator = torch.Generator().manual_seed(0)
    x0, labels = torch.randn(ROWS, *SHAPE, generator=generator), torch.arange(ROWS) % CLASSES
    batch = draw_batch(
        objectives, model, x0, labels, total=ROWS, part=slice(0, ROWS), condition_dropout=0.1, generator=generator
    )
    own = {p.untyped_storage().data_ptr() for network in (model, target) for p in network.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    torch.manual_seed(1)  # dropout
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        losses = module(batch, target, teacher)
    backward(module, losses)
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}, sum(kept.values())


@pytest.mark.parametrize(
    ("name", "outer"), [*((name, "target") for name in NETWORKS), ("MLP", "student"), ("DDPMpp", "student")]
)
def test_gradients_are_equal_and_less_is_kept(name, outer):
    """Of one step, through student and target, with dropout. The same operations run on the same numbers: to rounding alone."""
    model = random_weights(TrajectoryModel(NETWORKS[name](), shape=SHAPE, num_classes=CLASSES))
    again = copy.deepcopy(model)
    set_checkpointing(again.network)
    plain, all_bytes = gradients(model, outer)
    found, bytes_kept = gradients(again, outer)
    assert found.keys() == plain.keys()
    for key, value in plain.items():
        torch.testing.assert_close(found[key], value, rtol=1e-5, atol=1e-6 * float(value.abs().max() + 1e-12))
    assert bytes_kept < 0.6 * all_bytes
    print(f"{name}, outer {outer}: {bytes_kept} of {all_bytes} bytes kept ({bytes_kept / all_bytes:.2f})")


def test_a_run_with_it_is_the_run_without(tmp_path, few_draws):
    """Ten steps from a teacher: the same weights to rounding, and the dry run counts the same evaluations."""
    teacher = trained(tmp_path / "teacher", teacher_arguments("--steps", "1"))
    common = student_arguments(teacher, "--steps", "10", "--log_every", "10")
    plain = weights(trained(tmp_path / "plain", common))
    found = weights(trained(tmp_path / "again", [*common, "--engine.checkpoint_gradients", "true"]))
    for name, value in plain.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-5)
    recipe, _ = parse_recipe([*common, "--engine.checkpoint_gradients", "true"])
    assert dry_run(recipe).evaluations["student"] == 3


def test_what_it_does_not_go_with_is_refused(tmp_path):
    for other in ({"sharding": "fsdp2"}, {"compile": "eager"}):
        with pytest.raises(ValueError, match="checkpoint_gradients goes with sharding none and without compile"):
            EngineSettings(checkpoint_gradients=True, **other)
    with pytest.raises(ValueError, match=r"Linear has neither checkpoint_gradients\(\) nor"):
        set_checkpointing(torch.nn.Linear(1, 1))
    teacher = trained(tmp_path / "teacher", teacher_arguments("--steps", "1"))
    ways = ["--objectives", '[{"class_path": "ctm.objectives.Lagrangian"}]', "--engine.checkpoint_gradients", "true"]
    recipe, _ = parse_recipe(student_arguments(teacher, *ways))
    with pytest.raises(ValueError, match="checkpoint_gradients does not go with Lagrangian"):
        dry_run(recipe)
