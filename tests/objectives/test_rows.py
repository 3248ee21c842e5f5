"""Rows whose jump stays at its level are not computed, and nothing else changes by that."""

from dataclasses import replace

import pytest
import torch

from ctm import TrajectoryModel
from ctm.networks import MLP
from ctm.objectives import Matching, Networks
from ctm.objectives.rows import Moves, jump_rows, untracked
from ctm.teachers import GaussianMixture

from ..conftest import mixture, random_weights
from .test_objectives import student

KINDS = {
    "soft": Matching(grid_points=6),
    "global": Matching(kind="global", grid_points=6),
    "to the end": Matching(grid_points=6, s="end", target_inner="target"),
    "continuous": Matching(grid_points=6, continuous=True),
    "from u": Matching(grid_points=6, estimate_at="u"),
    "without an inner jump": Matching(grid_points=6, target_inner="none"),
    "by the student": Matching(grid_points=6, estimate_outer="student", target_outer="student"),
    "at s": Matching(grid_points=6, compare="s"),
    "guided": Matching(grid_points=6, guidance=(1.0, 3.0)),
}


def networks(guided: bool = False) -> Networks:
    torch.manual_seed(0)
    made = [
        random_weights(
            TrajectoryModel(
                MLP((2,), 4, width=16, blocks=1, embedding=16, guidance_embedding=guided), shape=(2,), num_classes=4
            ),
            seed=seed,
        ).double()
        for seed in (0, 1)
    ]
    return Networks(made[0], made[1].requires_grad_(False), mixture(2))


def counted(models: Networks) -> list[int]:
    """Filled with the rows of each call of the student's and the target's network."""
    calls: list[int] = []
    for model in (models.student, models.target):
        model.network.register_forward_pre_hook(lambda module, inputs: calls.append(len(inputs[0])))
    return calls


@pytest.mark.parametrize("name", KINDS)
def test_loss_and_gradient_are_those_of_all_rows(name):
    """To rounding in float64: another number of rows is summed in another order."""
    way, models = KINDS[name], networks(name == "guided")
    calls, parameters = counted(models), list(models.student.parameters())
    x0, labels = models.teacher.sample(32), torch.arange(32) % 5 - 1
    spared = 0
    for seed in range(4):
        draw = way.draw(models.student, x0, torch.Generator().manual_seed(seed))
        found = []
        for moves in (draw.moves, {}):
            calls.clear()
            loss = way(models, x0, labels, replace(draw, moves=moves))
            found.append((loss, torch.autograd.grad(loss.mean(), parameters, allow_unused=True), sum(calls)))
        (spare, spare_gradient, few), (whole, gradient, many) = found
        torch.testing.assert_close(spare, whole, rtol=1e-10, atol=1e-13)
        for a, b in zip(spare_gradient, gradient, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
        spared += many - few
    assert (spared > 0) == (name != "continuous"), spared


def test_what_moves_is_what_the_times_say():
    way, model = Matching(grid_points=6), student()
    draw = way.draw(model, torch.zeros(64, 2), torch.Generator().manual_seed(1))
    times, low = draw.times, torch.tensor(0.002)
    assert torch.equal(draw.moves["u → s"].mask, times.s < times.u)
    assert torch.equal(draw.moves["s → end"].mask, times.s > low)
    assert torch.equal(draw.moves["u → end"].mask, times.u > low)
    part = draw.rows(slice(16, 32))
    assert torch.equal(part.moves["s → end"].mask, part.times.s > low)


def test_a_process_without_a_moving_row_makes_the_call_if_another_has_one():
    """Weights that are divided among processes are gathered in calls, which all processes must make."""
    t, s = torch.tensor([1.0, 1.0, 2.0, 1.0]), torch.tensor([1.0, 1.0, 1.0, 1.0])
    moves = Moves.between(t, s)
    assert moves.index(torch.device("cpu")).tolist() == [2]
    assert moves.part(slice(0, 2)).index(torch.device("cpu")).tolist() == [0]
    assert moves.part(slice(2, 3)).index(torch.device("cpu")) is None
    assert Moves.between(s, s).part(slice(0, 2)).index(torch.device("cpu")).tolist() == []
    model, x = student(), torch.randn(2, 2)
    assert torch.equal(jump_rows(model, x, t[:2], s[:2], None, moves.part(slice(0, 2))), x)


def test_a_compiled_network_gets_all_rows():
    """With torch.compile's own word for it; another number of rows would be compiled anew."""
    model, x = student(), torch.randn(4, 2)
    t, s = torch.tensor([1.0, 1.0, 2.0, 1.0]), torch.ones(4)
    calls: list[int] = []
    model.network.register_forward_pre_hook(lambda module, inputs: calls.append(len(inputs[0])))
    jump_rows(model, x, t, s, None, Moves.between(t, s))
    model.network.compile(backend="eager")
    jump_rows(model, x, t, s, None, Moves.between(t, s))
    assert calls[0] == 1
    assert calls[-1] == 4


def test_what_is_untracked_can_stand_in_a_loss():
    """An inference tensor could not: autograd refuses to keep one."""
    teacher, x = GaussianMixture(torch.zeros(1, 2), 0.5, torch.ones(1)), torch.randn(4, 2)
    found = untracked(lambda: teacher.denoise(x, torch.ones(4)))
    assert torch.equal(found, teacher.denoise(x, torch.ones(4)))
    factor = torch.ones(4, 2, requires_grad=True)
    (factor * found).sum().backward()
    assert torch.equal(factor.grad, found)
