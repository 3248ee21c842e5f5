"""A training step reads nothing back from the device but its verdict, and makes no float64 there."""

import pytest
import torch
from accelerate import Accelerator

from ctm import TrajectoryModel
from ctm.discriminators import MLPDiscriminator
from ctm.models import DiffusionModel
from ctm.networks import MLP
from ctm.objectives import Adversarial, DenoisingScoreMatching, Matching, MultistepWalk, TargetJumps
from ctm.objectives.walks import TeacherWalk
from ctm.solvers import midpoint_step
from ctm.terminal.recipe_parser import parse_recipe
from ctm.training import trainer
from ctm.training.assembly import load_data, prepare
from ctm.training.ema import frozen_copy
from ctm.training.step import LossModule, backward, draw_batch, step_generator

from ..reads import Dtypes, Reads
from .runs import student_arguments

HOST = (
    "noise.py:draw_solver_steps",
    "noise.py:draw_span",
    "noise.py:normal_like",
    "rows.py:between",
    "rows.py:index",
)
MATCHINGS = {
    "Heun": Matching(grid_points=18, solver_steps=2),
    "multistep": Matching(grid_points=18, solver_steps=3, solver=MultistepWalk()),
    "midpoint": Matching(grid_points=18, solver_steps=2, solver=TeacherWalk(midpoint_step)),
    "target": Matching(grid_points=18, solver_steps=2, solver=TargetJumps()),
    "global": Matching(kind="global", grid_points=4),
    "continuous": Matching(grid_points=18, max_solver_steps=2, continuous=True),
    "guided": Matching(grid_points=10, max_solver_steps=2, guidance=(1.0, 3.0)),
}


@pytest.mark.parametrize("name", MATCHINGS)
def test_losses_and_gradients_come_where_nothing_can_be_read(name):
    """All on the meta device, whose tensors have no values: reading one raises. No tensor there is float64."""
    guided = name == "guided"
    student = TrajectoryModel(MLP((1, 8, 8), 10, guidance_embedding=guided), shape=(1, 8, 8), num_classes=10).to("meta")
    teacher = DiffusionModel(MLP((1, 8, 8), 10, s_embedding=False), shape=(1, 8, 8), num_classes=10).to("meta")
    objectives = [MATCHINGS[name], DenoisingScoreMatching()]
    x0, labels = torch.empty(4, 1, 8, 8, device="meta"), torch.empty(4, dtype=torch.int64, device="meta")
    module = LossModule(student, objectives)
    rows = {"total": 4, "part": slice(0, 4), "condition_dropout": 0.1}
    with Dtypes("meta") as kinds:
        batch = draw_batch(objectives, student, x0, labels, generator=step_generator(0, 0), **rows)
        losses = module(batch, frozen_copy(student), teacher)
        backward(module, losses)
    assert all(loss.shape == () for loss in losses)
    assert all(parameter.grad is not None for parameter in student.network.last_layer.parameters())
    assert not kinds.double


@pytest.mark.parametrize("adversarial", [False, True])
def test_a_step_reads_its_verdict_and_nothing_else(tmp_path, adversarial):
    """k, times, the rows that move and dropout are drawn on the host; the student's and the discriminator's verdicts are read,
    each in one go."""
    extra = ["--objectives", '[{"class_path": "ctm.objectives.Matching", "init_args": {"solver_steps": 12}}]']
    recipe, _ = parse_recipe(student_arguments(tmp_path, *extra))
    recipe.teacher, objectives = None, [Matching(solver_steps=12), DenoisingScoreMatching()]
    if adversarial:
        objectives.append(Adversarial(discriminator=MLPDiscriminator(), augmentation=(), alternate=False))
    recipe.objectives = objectives
    run = prepare(recipe, Accelerator(cpu=True), load_data(recipe), stand_in=[])
    for group in run.optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    trainer._step(run, 0)
    with Reads(*HOST) as reads:
        trainer._step(run, 1)
    assert 1 <= reads.count <= 3, reads.places


def test_reads_are_seen():
    """The counter counts each way of reading once."""
    x = torch.arange(3.0)
    for read in (
        lambda: float(x[0]),
        lambda: bool((x > 0).all()),
        x.tolist,
        x.numpy,
        x.cpu,
        lambda: x[x > 0],
        lambda: x.max().item(),
        lambda: torch.where(x > 0),
    ):
        with Reads() as reads:
            read()
        assert reads.count == 1, reads.places
