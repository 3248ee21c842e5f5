"""What each sampler tends to: the distribution of the mixture, by energy distance with an error bar."""

import functools
import math

import pytest
import torch

from ctm.noise import karras_grid, log_linear_grid, match_dims
from ctm.sampling import ancestral, consistency, dpmpp_2m_sde, gamma, heun, midpoint, two_level

from ..conftest import mixture, slow
from ..energy import energy_distance, null_bound

N = 600


class Flow:
    """The mixture's flow by classical Runge-Kutta steps in ln(t² + c²): much faster than its own, and near to it."""

    def __init__(self, teacher, steps=16) -> None:
        self.teacher, self.steps = teacher, steps

    def jump(self, x, t, s, labels=None):
        start, stop = ((level**2 + self.teacher.std**2).log() / 2 for level in (t, s))
        width = (stop - start) / self.steps

        def slope(r, y):
            mean = self.teacher._posterior_mean(y * match_dims(r.exp(), y), (2 * r).exp(), None)
            return -match_dims((-r).exp(), y) * mean

        y = x * match_dims((-start).exp(), x)
        h = match_dims(width, y)
        for k in range(self.steps):
            r = start + k * width
            a = slope(r, y)
            b = slope(r + width / 2, y + h / 2 * a)
            c = slope(r + width / 2, y + h / 2 * b)
            d = slope(r + width, y + h * c)
            y = y + h / 6 * (a + 2 * b + 2 * c + d)
        return y * match_dims(stop.exp(), y)


@functools.cache
def bound_of(dimensions):
    return null_bound(mixture(dimensions).sample, N)


def start_of(teacher, dimensions, n=N):
    return teacher.sample(n, seed=50) + 80 * torch.randn(n, dimensions, dtype=torch.float64)


def test_the_quick_flow_is_the_flow():
    teacher = mixture(2)
    x = start_of(teacher, 2, 50)
    t, s = torch.full((50,), 80.0).double(), torch.full((50,), 0.002).double()
    error = (Flow(teacher).jump(x, t, s) - teacher.jump(x, t, s)).norm(dim=1)
    assert float(error.median()) < 1e-4
    assert float(error.mean()) < 5e-3


PLANS = [(1, 0.0, "paper")]  # one jump is the same for every γ, and γ = 0 and 1 are the same in both forms
PLANS += [(8, share, "paper") for share in (0.0, 0.3, 0.7, 1.0)] + [(8, share, "code") for share in (0.3, 0.7)]
PLANS += [slow(64, share, "paper") for share in (0.0, 0.3, 0.7, 1.0)] + [
    slow(64, share, "code") for share in (0.3, 0.7)
]


@pytest.mark.parametrize(("steps", "share", "form"), PLANS)
def test_gamma_sampling_keeps_the_distribution(steps, share, form):
    teacher = mixture(2)
    bound = bound_of(2)
    made = gamma(Flow(teacher), start_of(teacher, 2), karras_grid(steps).double(), gamma=share, form=form)
    assert energy_distance(made, teacher.sample(N, seed=51)) < bound
    assert energy_distance(made + 0.25 * teacher.sigma_data, teacher.sample(N, seed=51)) > bound  # the test can fail


@pytest.mark.parametrize(
    ("steps", "share"),
    [
        (1, 0.0),
        (4, 0.7),
        *(slow(4, share) for share in (0.0, 0.3, 1.0)),
        *(slow(64, share) for share in (0.0, 0.3, 0.7, 1.0)),
    ],
)
def test_gamma_sampling_keeps_the_distribution_in_64_dimensions(steps, share):
    teacher = mixture(64)
    bound = bound_of(64)
    flow = Flow(teacher, 96 if steps < 64 else 16)
    made = gamma(flow, start_of(teacher, 64), karras_grid(steps).double(), gamma=share)
    assert energy_distance(made, teacher.sample(N, seed=51)) < bound


def test_consistency_takes_any_levels():
    teacher = mixture(2)
    levels = torch.tensor([80.0, 7.0, 6.9, 0.4, 0.01, 0.002], dtype=torch.float64)
    made = consistency(Flow(teacher), start_of(teacher, 2), levels)
    assert energy_distance(made, teacher.sample(N, seed=51)) < bound_of(2)


def test_two_level_jumps_keep_the_distribution():
    levels = torch.tensor([80.0, 0.5, 2.0, 0.002], dtype=torch.float64)
    teacher = mixture(2)
    made = two_level(Flow(teacher), start_of(teacher, 2), levels)
    assert energy_distance(made, teacher.sample(N, seed=51)) < bound_of(2)


SDE = {
    "ancestral": (ancestral, {}),
    "dpmpp_2m_sde": (dpmpp_2m_sde, {}),
    "heun with churn": (heun, {"churn": 40.0}),
    "midpoint with churn": (midpoint, {"churn": 40.0}),
}


@pytest.mark.parametrize("name", SDE)
@pytest.mark.parametrize("dimensions", [2, slow(64)])
def test_sde_samplers_keep_the_marginals(name, dimensions):
    """At the end, and at a level half way, where the truth is the mixture blurred by that level."""
    teacher, (sampler, options) = mixture(dimensions), SDE[name]
    grid = log_linear_grid(256, dtype=torch.float64)
    seen = {}
    sampler(
        teacher, start_of(teacher, dimensions), grid, callback=lambda step: seen.update({step.index: step}), **options
    )
    for index in (127, 255):
        level = float(grid[index + 1])

        def blurred(n, seed, level=level):
            generator = torch.Generator().manual_seed(1000 + seed)
            noise = torch.randn(n, dimensions, dtype=torch.float64, generator=generator)
            return teacher.sample(n, seed) + level * noise

        assert energy_distance(seen[index].x, blurred(N, 51)) < null_bound(blurred, N)


def test_the_second_order_sde_sampler_needs_fewer_steps():
    """One Gaussian: the error of the variance at the end falls by 2 per doubling for ancestral, faster for 2M, which is the
    better at every count. Both from exact moments: x stays Gaussian, with the variance that its linear steps make."""
    c = 0.5

    def variance_error(sampler, steps):
        """Of x ↦ a·x + b·ε in every step, by following the coefficients: x = coefficients of the start and of each draw."""
        rows = torch.eye(
            steps + 1, 1, dtype=torch.float64
        )  # the start, then one row for each draw, as independent inputs
        rows[0] = math.sqrt(80**2 + c**2)
        draws = iter(range(1, steps + 1))

        def noise(x):
            return torch.nn.functional.one_hot(torch.tensor(next(draws)), steps + 1).double()[:, None]

        made = sampler(
            lambda x, t: x * (c**2 / (c**2 + t[:, None] ** 2)), rows, log_linear_grid(steps).double(), noise=noise
        )
        return abs(float(made.square().sum()) - (c**2 + 0.002**2))

    errors = {s: [variance_error(s, n) for n in (64, 128, 256)] for s in (ancestral, dpmpp_2m_sde)}
    for coarse, fine in zip(errors[ancestral], errors[ancestral][1:], strict=False):
        assert math.log2(coarse / fine) == pytest.approx(1, abs=0.15)
    for coarse, fine in zip(errors[dpmpp_2m_sde], errors[dpmpp_2m_sde][1:], strict=False):
        assert math.log2(coarse / fine) > 1.5
    assert all(b < a / 4 for a, b in zip(errors[ancestral], errors[dpmpp_2m_sde], strict=True))
