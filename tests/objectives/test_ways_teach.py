"""Every way teaches the flow of a mixture: a small student comes nearer to the exact one-jump and four-jump ends."""

from itertools import pairwise

import pytest
import torch

from ctm import TrajectoryModel, karras_grid
from ctm.networks import MLP
from ctm.objectives import (
    DenoisingScoreMatching,
    Eulerian,
    Lagrangian,
    Matching,
    Objective,
    PseudoHuber,
    SameNoise,
    Semigroup,
    ShrinkingGap,
)
from ctm.teachers import GaussianMixture

from ..learning import learn

TUNING = Matching(
    kind="local",
    s="end",
    target_inner="student",
    solver=SameNoise(),
    distance=PseudoHuber(),
    times=ShrinkingGap(every=60),
    gap_power=1.0,
)
WAYS: dict[
    str, tuple[Objective, float]
] = {  # the way, and the bound on one jump after 500 steps: about twice what was measured
    "Lagrangian": (Lagrangian(), 0.2),
    "Lagrangian, own velocity": (Lagrangian(velocity="student"), 0.55),
    "Eulerian": (Eulerian(warmup=200, normalise=0.1), 0.2),
    "Eulerian, data": (Eulerian(velocity="data"), 0.35),
    "Semigroup": (Semigroup(), 0.25),
    "consistency tuning": (TUNING, 0.3),
}


def mixture_and_student() -> tuple[GaussianMixture, TrajectoryModel]:
    torch.manual_seed(0)
    data = GaussianMixture(torch.tensor([[0.6, 0.3], [-0.6, 0.3], [0.0, -0.7]]), 0.35, torch.ones(3))
    network = MLP((2,), width=64, blocks=2, embedding=32)
    return data, TrajectoryModel(network, shape=(2,), sigma_data=data.sigma_data)


def error(model, truth: GaussianMixture, jumps: int, n: int = 2000) -> float:
    """Root mean square error of the jumps from 80 to 0.002 against the exact flow, relative to the data's deviation."""
    start = truth.sample(n, seed=10**6) + 80 * torch.randn(n, 2, generator=torch.Generator().manual_seed(5))
    grid, x = karras_grid(jumps), start
    with torch.no_grad():
        for t, s in pairwise(grid):
            x = model.jump(x, t.expand(n), s.expand(n))
        missed = x - truth.jump(start, grid[0].expand(n), grid[-1].expand(n))
    return missed.square().mean().sqrt().item() / truth.sigma_data


def taught(way: Objective, steps: int, n: int = 2000) -> tuple[dict[int, float], dict[int, float]]:
    """The errors of 1, 2 and 4 jumps before and after."""
    data, student = mixture_and_student()
    before = {jumps: error(student, data, jumps, n) for jumps in (1, 2, 4)}
    teacher = data if way.needs_teacher else None
    trained = learn(data, student, [way, DenoisingScoreMatching()], steps, teacher=teacher, target_ema=0.9)
    after = {jumps: error(trained, data, jumps, n) for jumps in (1, 2, 4)}
    print(f"{way}\nbefore {before}\nafter {after}")
    return before, after


@pytest.mark.slow
@pytest.mark.parametrize("name", WAYS)
def test_every_way_teaches_the_jump(name):
    """A denoiser alone would be at 0.8 or more in one jump: its best is the mean of the data."""
    way, bound = WAYS[name]
    before, after = taught(way, 500)
    assert before[1] > 0.9
    assert after[1] < bound


@pytest.mark.parametrize("name", [pytest.param("Lagrangian", marks=pytest.mark.slow), "Semigroup"])
def test_a_few_steps_bring_the_jumps_nearer(name):
    before, after = taught(WAYS[name][0], 60, n=300)
    assert after[1] < before[1]
    assert after[4] < 0.85 * before[4]
