import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ctm.noise import karras_grid
from ctm.sampling import dpmpp_2m, euler, heun, midpoint
from ctm.solvers import ancestral_levels, euler_step, heun_step, midpoint_step, walk
from ctm.teachers import GaussianMixture

from .conftest import mixture, slow

METHODS = [(euler, 1), (heun, 2), (midpoint, 2), (dpmpp_2m, 2)]


@pytest.mark.parametrize(("sampler", "order"), METHODS)
def test_error_falls_with_the_order(sampler, order):
    """One Gaussian N(0, c²): the flow multiplies x by √((s²+c²)/(t²+c²))."""
    c, x = 0.5, 80 * torch.randn(16, 2, dtype=torch.float64)
    teacher = GaussianMixture(torch.zeros(1, 2, dtype=torch.float64), c, torch.ones(1))
    truth = x * math.sqrt((0.002**2 + c**2) / (80**2 + c**2))
    errors = [
        float((sampler(teacher, x, karras_grid(n, dtype=torch.float64)) - truth).abs().max()) for n in (128, 256, 512)
    ]
    for coarse, fine in itertools.pairwise(errors):
        assert math.log2(coarse / fine) == pytest.approx(order, abs=0.1)


@pytest.mark.parametrize("dimensions", [2, slow(16)])
@pytest.mark.parametrize(("sampler", "order"), METHODS)
def test_error_falls_with_the_order_on_a_mixture(dimensions, sampler, order):
    """The truth is the mixture's own flow, solved to 1e-9. Points near the borders between modes converge late: median."""
    teacher = mixture(dimensions)
    x = 80 * torch.randn(64, dimensions, dtype=torch.float64)
    truth = teacher.jump(x, torch.full((64,), 80.0), torch.full((64,), 0.002))
    errors = [
        (sampler(teacher, x, karras_grid(n, dtype=torch.float64)) - truth).norm(dim=1).median().item()
        for n in (256, 512)
    ]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.2)
    assert errors[1] < (0.02 if order == 1 else 5e-4)


@pytest.mark.parametrize("step", [euler_step, heun_step, midpoint_step])
def test_levels_may_differ_between_samples(step):
    teacher = mixture(2)
    x = torch.randn(3, 2, dtype=torch.float64)
    t, s = torch.tensor([3.0, 1.0, 0.5]).double(), torch.tensor([1.0, 0.5, 0.0]).double()
    together = step(teacher.denoise, x, t, s)
    alone = torch.cat([step(teacher.denoise, x[i : i + 1], t[i : i + 1], s[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-12)


def test_the_step_to_zero_is_the_denoised_image():
    teacher = mixture(2)
    x, t, zero = torch.randn(5, 2, dtype=torch.float64), torch.full((5,), 0.3).double(), torch.zeros(5).double()
    for step in (euler_step, heun_step):
        torch.testing.assert_close(step(teacher.denoise, x, t, zero), teacher.denoise(x, t), rtol=0, atol=0)


def test_heun_makes_two_evaluations_a_step():
    teacher, calls = mixture(2), []

    def denoise(x, t):
        calls.append(t)
        return teacher.denoise(x, t)

    path = karras_grid(3, dtype=torch.float64)[:, None].expand(4, 5)
    walk(denoise, torch.randn(5, 2, dtype=torch.float64), path)
    assert len(calls) == 6


def test_float32_and_float64_walk_alike():
    teacher = mixture(2)
    x, path = 80 * torch.randn(32, 2, dtype=torch.float64), karras_grid(18, dtype=torch.float64)[:, None].expand(19, 32)
    double, single = walk(teacher.denoise, x, path), walk(teacher.denoise, x.float(), path.float())
    assert single.dtype == torch.float32
    assert (double - single).abs().median().item() < 1e-4


@given(t=st.floats(0.002, 80), share=st.floats(0, 1), eta=st.floats(0, 1))
def test_ancestral_levels_add_up_to_the_next_level(t, share, eta):
    t = torch.tensor(t, dtype=torch.float64)
    down, up = ancestral_levels(t, share * t, eta)
    torch.testing.assert_close(down**2 + up**2, (share * t) ** 2)
    assert 0 <= float(down) <= float(t)
    if eta == 0:
        assert float(up) == 0


def test_ancestral_levels_of_eta_one_are_the_posterior():
    """x_s given x_t and x_0 has the variance s²(t² − s²)/t² (DDPM's posterior in this convention)."""
    t, s = torch.tensor(3.0, dtype=torch.float64), torch.tensor(2.0, dtype=torch.float64)
    down, up = ancestral_levels(t, s)
    assert float(up**2) == pytest.approx(4 * (9 - 4) / 9)
    assert float(down) == pytest.approx(4 / 3)
