"""The mean velocity against its definition, and against the closed-form flow of a Gaussian."""

import itertools
import math

import pytest
import torch
from torch import nn

from ctm import TrajectoryModel
from ctm.export import MeanVelocity
from ctm.export.flow_map import TIME_SCALE, flow_time, noise_level
from ctm.networks import MLP

from ..conftest import random_weights

LEVELS = [(80.0, 0.002), (80.0, 1.0), (3.0, 2.9), (0.5, 0.01), (0.004, 0.002)]


@pytest.mark.parametrize("outer", ["euler", "variance", "euler_variance_mixed"])
@pytest.mark.parametrize("levels", LEVELS)
def test_a_step_along_the_mean_velocity_is_a_jump(outer, levels):
    """z_τ − (τ − r)·u = G/(1 + s), and at r = 0 the image G(x, σ, σ_min) itself."""
    model = TrajectoryModel(random_weights(MLP([3], width=16, blocks=1)), shape=[3], outer=outer).double().eval()
    velocity = MeanVelocity(model)
    t, s = (torch.full((4,), level, dtype=torch.float64) for level in levels)
    x = t[:, None] * torch.randn(4, 3, dtype=torch.float64)
    z, tau, r = x / (1 + t[:, None]), flow_time(t), flow_time(s)
    moved = z - (tau - r)[:, None] * velocity(z, TIME_SCALE * tau, TIME_SCALE * r)
    torch.testing.assert_close(moved, model.jump(x, t, s) / (1 + s[:, None]), rtol=1e-6, atol=1e-7)
    ended = z - tau[:, None] * velocity(z, TIME_SCALE * tau, torch.zeros_like(tau))
    torch.testing.assert_close(ended, model.jump(x, t, torch.full_like(t, 0.002)), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("outer", ["euler", "variance", "euler_variance_mixed"])
def test_at_one_time_it_is_the_velocity_of_flow_matching(outer):
    """u = ε − x_0 in the mean: (x − D)/σ − D. The mean velocity over a short time comes near it."""
    model = TrajectoryModel(random_weights(MLP([3], width=16, blocks=1)), shape=[3], outer=outer).double().eval()
    velocity = MeanVelocity(model)
    t = torch.tensor([0.1, 1.0, 10.0], dtype=torch.float64)
    x = torch.randn(3, 3, dtype=torch.float64)
    z, tau = x / (1 + t[:, None]), TIME_SCALE * flow_time(t)
    d = model.denoise(x, t)
    here = velocity(z, tau, tau)
    torch.testing.assert_close(here, (x - d) / t[:, None] - d)
    torch.testing.assert_close(velocity(z, tau, tau - 1e-3 * TIME_SCALE * 1e-2), here, rtol=1e-2, atol=1e-2)


class _GaussianFlow(nn.Module):
    """g of the exact jump of N(0, c²): G = x·√((s² + c²)/(t² + c²)) = (s/t)·x + (1 − s/t)·g."""

    c = 0.5

    def forward(self, x, t, s, condition):
        t, s = t[:, None].double(), s[:, None].double()
        factor = ((s**2 + self.c**2) / (t**2 + self.c**2)).sqrt()
        exact = x * (factor - s / t) / (1 - s / t).clamp(min=1e-12)
        instant = x * self.c**2 / (t**2 + self.c**2)
        return torch.where(s < t, exact, instant)


def test_the_exact_flow_of_a_gaussian_in_two_steps():
    """z_r/z_τ is √((s² + c²)/(t² + c²))·(1 + t)/(1 + s)."""

    class Exact(TrajectoryModel):
        def g(self, x, t, s, condition=None):
            return _GaussianFlow()(x, t, s, condition)

    velocity = MeanVelocity(Exact(MLP([2], width=8, blocks=1), shape=[2]).double())
    sigma = [80.0, 1.0, 0.002]
    x = 80 * torch.randn(8, 2, dtype=torch.float64)
    z, times = x / 81, [level / (1 + level) for level in sigma[:2]] + [0.0]
    for tau, r in itertools.pairwise(times):
        full = torch.full((8,), TIME_SCALE, dtype=torch.float64)
        z = z - (tau - r) * velocity(z, full * tau, full * r)
    truth = x * math.sqrt((0.002**2 + 0.25) / (80**2 + 0.25))
    torch.testing.assert_close(z, truth, rtol=1e-7, atol=1e-9)


def test_levels_and_times_are_inverse():
    sigma = torch.tensor([0.002, 1.0, 80.0], dtype=torch.float64)
    torch.testing.assert_close(noise_level(flow_time(sigma)), sigma)
