"""Several targets from one walk, and walks that grow."""

from dataclasses import replace

import pytest
import torch

from ctm.noise import Times, karras_grid
from ctm.objectives import Matching, MultistepWalk, Networks, SameNoise, TargetJump, TargetJumps, TeacherWalk
from ctm.objectives.matching import MatchingDraw

from ..conftest import mixture, slow
from .test_objectives import Exact, student


@pytest.mark.parametrize(("kind", "continuous"), [("soft", False), slow("global", True)])
def test_the_exact_flow_has_almost_no_loss_at_every_level_that_a_walk_passes(kind, continuous):
    """What is left is Heun's error on 257 levels, as for one target. (test_objectives.py has one, and a map that is off.)"""
    teacher = mixture(2)
    way = Matching(kind=kind, grid_points=257, solver_steps=12, continuous=continuous, targets=2)
    x0, networks = teacher.sample(8), Networks(Exact(teacher), Exact(teacher), teacher)
    draw = way.draw(networks.student, x0, torch.Generator().manual_seed(0))
    assert way(networks, x0, None, draw).median().item() < 2e-8
    assert way.teacher_evaluations(draw) == 24


@pytest.mark.parametrize("solver", [TeacherWalk(), MultistepWalk(), TargetJumps()])
def test_the_loss_is_the_mean_over_the_targets_of_one_walk(solver):
    model, teacher = student().double(), mixture(2)
    networks, x0 = Networks(model, student().double().requires_grad_(False), teacher), teacher.sample(8)
    way = Matching(grid_points=8, solver_steps=5, solver=solver, targets=3)
    draw = way.draw(model, x0, torch.Generator().manual_seed(0))
    one = replace(way, targets=1)
    assert torch.equal(one.draw(model, x0, torch.Generator().manual_seed(0)).times.path, draw.times.path)
    parts = [one(networks, x0, None, replace(draw, more=()))]
    for end in draw.more:
        each = []
        for row in range(8):
            step, part = int(end.step[row]), slice(row, row + 1)
            path = draw.times.path[: step + 1, part]
            assert torch.equal(path[-1], end.times.u[part])
            alone = MatchingDraw(Times(path, end.times.s[part]), draw.noise[part])
            each.append(one(networks, x0[part], None, alone))
        parts.append(torch.cat(each))
    found = way(networks, x0, None, draw)
    torch.testing.assert_close(found, torch.stack(parts).mean(0), rtol=1e-9, atol=1e-13)
    halves = [way(networks, x0[part], None, draw.rows(part)) for part in (slice(0, 4), slice(4, 8))]
    torch.testing.assert_close(torch.cat(halves), found, rtol=1e-9, atol=1e-13)


def test_further_targets_are_uniform_on_the_levels_passed_and_below():
    """u uniform on the walk's levels, s uniform from u to the end: each share within four standard deviations."""
    n, grid = 4000, karras_grid(5)
    way = Matching(grid_points=6, solver_steps=3, targets=2)
    draw = way.draw(student(), torch.zeros(n, 2), torch.Generator().manual_seed(0))
    (end,) = draw.more
    shares = end.step.bincount(minlength=4)[1:] / n
    assert bool(((shares - 1 / 3).abs() < 4 * (2 / 9 / n) ** 0.5).all()), shares
    u, s = ((level[:, None] - grid).abs().argmin(1) for level in (end.times.u, end.times.s))
    assert torch.equal(grid[u], end.times.u)
    assert torch.equal(grid[s], end.times.s)
    below = s[u == 3]
    shares = below.bincount(minlength=6)[3:] / len(below)
    assert bool(((shares - 1 / 3).abs() < 4 * (2 / 9 / len(below)) ** 0.5).all()), shares
    assert torch.equal(end.moves["u → s"].mask, end.times.s < end.times.u)


def test_walks_grow_from_one_step_to_all():
    way, model, x0 = Matching(grid_points=10, grow=90, start=10), student(), torch.zeros(2, 2)
    assert [way.longest_at(step) for step in (10, 19, 20, 54, 99, 100, 10**6)] == [1, 1, 2, 5, 9, 9, 9]
    generator = torch.Generator().manual_seed(0)
    for step, most in ((10, 1), (40, 4), (200, 9)):
        found = {len(way.draw_at(step, model, x0, generator).times.path) - 1 for _ in range(60)}
        assert max(found) == most
    continuous = replace(way, continuous=True)
    spans = [len(continuous.draw_at(10, model, x0, generator).times.path) - 1 for _ in range(20)]
    assert set(spans) == {1}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"targets": 0}, "targets must be at least 1 and grow at least 0, got 0 and 0"),
        ({"targets": 2, "kind": "local"}, "targets 2 needs walks that pass other levels on their way"),
        ({"targets": 2, "solver": TargetJump()}, "got kind soft and TargetJump"),
        ({"targets": 2, "solver": SameNoise()}, "got kind soft and SameNoise"),
        ({"grow": 5, "solver_steps": 3}, "here it is always 3"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Matching(**settings)
