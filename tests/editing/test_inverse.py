"""Inverse problems where guidance is exact, and what of their arguments holds. Where it is biased: test_known_posterior.py."""

import pytest
import torch

from ctm.editing import LinearOperator, masking, replace, solve_guided
from ctm.teachers import GaussianMixture

from ..conftest import mixture
from .posterior import Jumps, posterior

N = 1000
FIRST = masking(torch.tensor([True, False]))
DIRECTION = torch.tensor([0.6, 0.8], dtype=torch.float64)
SUM = LinearOperator(lambda x: x @ DIRECTION, lambda y: y[:, None] * DIRECTION)


def measured(operator, point):
    return operator.A(torch.tensor(point, dtype=torch.float64).expand(N, 2))


@pytest.mark.parametrize("operator", [FIRST, SUM])
def test_pseudo_inverse_guidance_is_exact_on_one_gaussian(operator):
    teacher = GaussianMixture(torch.tensor([[0.3, -0.2]]).double(), 0.5, torch.ones(1))
    y = measured(operator, [0.5, -0.4])
    made = solve_guided(teacher, operator, y, steps=400, clamp=False)
    mean_error, covariance_error = posterior(teacher, operator, y[:1]).errors(made)
    assert mean_error < 4 / N**0.5
    assert covariance_error < 4 * (2 / N) ** 0.5


class Correlated:
    """N(0, C) in three dimensions, every two coordinates with correlation 0.9, as neighbouring pixels have."""

    shape, sigma_min, sigma_max, sigma_data = (3,), 0.002, 80.0, 0.5
    covariance = 0.25 * (0.1 * torch.eye(3) + 0.9).double()

    def denoise(self, x, t, labels=None):
        noisy = self.covariance + t[0] ** 2 * torch.eye(3)
        return x @ torch.linalg.solve(noisy, self.covariance)


def test_guidance_is_exact_on_a_gaussian_whose_coordinates_go_together():
    """One coordinate measured as 0.8: the others have mean 0.72 and standard deviation 0.22. Guidance with one number r² for the
    variance cannot know that. Euler's 120 steps leave 5 % of the variance out."""
    operator = masking(torch.tensor([True, False, False]))
    y = torch.tensor([0.8, 0.0, 0.0]).double().expand(N, 3)
    made = solve_guided(Correlated(), operator, y, steps=120, clamp=False)
    variance = 0.25 * (1 - 0.9**2)
    torch.testing.assert_close(made[:, 0], y[:, 0])
    assert float((made[:, 1:].mean(0) - 0.72).abs().max()) < 4 * (variance / N) ** 0.5
    assert float((made[:, 1:].var(0) / variance - 1).abs().max()) < 4 * (2 / N) ** 0.5 + 0.06


def test_one_evaluation_is_the_posterior_mean_of_a_gaussian():
    operator = masking(torch.tensor([True, False, False]))
    y = torch.tensor([0.8, 0.0, 0.0]).double().expand(4, 3)
    made = solve_guided(Correlated(), operator, y, steps=1, clamp=False)
    torch.testing.assert_close(made, torch.tensor([0.8, 0.72, 0.72]).double().expand(4, 3), rtol=0, atol=0.03)


def test_what_is_measured_is_kept_exactly():
    teacher = mixture(2)
    y = measured(SUM, [0.5, -0.4])[:4]
    for made in (replace(Jumps(teacher, 6), SUM, y, clamp=False), solve_guided(teacher, SUM, y, steps=4, clamp=False)):
        torch.testing.assert_close(SUM.A(made), y)
    jumped = solve_guided(teacher, SUM, y, steps=2, jumps=True, clamp=False)
    torch.testing.assert_close(SUM.A(jumped), y)


def test_few_rounds_lean_on_the_guess():
    """Two far modes and a measurement that tells nothing: with the guess at one of them, nearly all samples are there."""
    teacher = GaussianMixture(torch.tensor([[0.0, -2.0], [0.0, 2.0]]).double(), 0.2, torch.ones(2))
    y = measured(FIRST, [0.0, 0.0])[:64]
    guess = torch.tensor([0.0, 2.0]).double().expand(64, 2)
    grid = torch.tensor([1.0, 0.002], dtype=torch.float64)
    made = replace(Jumps(teacher, 6), FIRST, y, grid=grid, guess=guess, clamp=False)
    assert float((made[:, 1] > 0).double().mean()) > 0.9
    low = replace(Jumps(teacher, 6), FIRST, y, grid=grid, guess=-guess, clamp=False)
    assert float((low[:, 1] < 0).double().mean()) > 0.9


def test_a_guess_of_another_shape_is_refused():
    teacher = mixture(2)
    with pytest.raises(ValueError, match="a guess has the shape of the images"):
        replace(teacher, FIRST, measured(FIRST, [0.0, 0.0])[:4], guess=torch.zeros(4, 3))
