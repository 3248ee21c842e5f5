"""What every sampler does alike: it can be cancelled, keeps float64, gives each image its own noise, and tells of each step."""

import math
from functools import partial

import pytest
import torch

from ctm import sampling
from ctm.noise import karras_grid
from ctm.sampling import Cancelled, generate

GRID = karras_grid(5, dtype=torch.float64)
JUMPS = {
    "gamma": partial(sampling.gamma, gamma=0.5),
    "gamma, the code's form": partial(sampling.gamma, gamma=0.5, form="code"),
    "consistency": sampling.consistency,
    "two_level": sampling.two_level,
}
DENOISERS = {
    "euler": sampling.euler,
    "heun": sampling.heun,
    "heun with churn": partial(sampling.heun, churn=2.0),
    "midpoint": sampling.midpoint,
    "midpoint with churn": partial(sampling.midpoint, churn=2.0),
    "dpmpp_2m": sampling.dpmpp_2m,
    "ancestral": sampling.ancestral,
    "dpmpp_2m_sde": sampling.dpmpp_2m_sde,
}
ALL = JUMPS | DENOISERS


def grid_of(name):
    return torch.tensor([80.0, 0.5, 2.0, 0.002], dtype=torch.float64) if name == "two_level" else GRID


@pytest.mark.parametrize("name", ALL)
def test_images_depend_on_seed_and_number_alone(small_ctm, name):
    options = {"grid": grid_of(name).float(), "sampler": ALL[name], "seed": 4, "labels": 2}
    together = generate(small_ctm, 7, batch_size=7, **options)
    in_threes = generate(small_ctm, 7, batch_size=3, **options)
    torch.testing.assert_close(in_threes, together, rtol=0, atol=1e-4)
    assert not torch.allclose(together[0], together[1], atol=1e-2)


@pytest.mark.parametrize("name", ALL)
def test_float64_is_kept_and_agrees(small_ctm, name):
    """The same noise; with the network in float64 too, float32 is off by rounding and nothing else."""
    options = {"sampler": ALL[name], "labels": 2, "seed": 4}
    single = generate(small_ctm, 3, grid=grid_of(name).float(), **options)
    double = generate(small_ctm.double(), 3, grid=grid_of(name), dtype=torch.float64, **options)
    assert double.dtype == torch.float64
    torch.testing.assert_close(single.double(), double, rtol=1e-3, atol=1e-3)
    assert not torch.equal(double.float().double(), double)


@pytest.mark.parametrize("name", ALL)
def test_the_callback_sees_each_step_and_can_stop(small_ctm, name):
    x, grid, seen = 80 * torch.randn(3, *small_ctm.shape), grid_of(name).float(), []
    result = ALL[name](small_ctm, x, grid, callback=seen.append)
    assert [step.index for step in seen] == list(range(len(seen)))
    assert torch.equal(seen[-1].x, result)
    assert all(float(step.t) > float(step.s) for step in seen)
    assert math.isclose(float(seen[-1].s), float(grid[-1]), rel_tol=1e-6)
    assert all((step.denoised is None) == (name in JUMPS) for step in seen)
    calls = []

    def stop(step):
        calls.append(step)
        if step.index == 1:
            raise Cancelled

    with pytest.raises(Cancelled):
        ALL[name](small_ctm, x, grid, callback=stop)
    assert len(calls) == 2
