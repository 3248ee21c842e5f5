"""The Gaussian fields of examples/fields in closed form, and the library's samplers, likelihood and inverse problems on them."""

import math

import pytest
import torch
from examples.fields.data import conditions
from examples.fields.gaussian import GaussianFields
from examples.fields.posterior import given
from torch.distributions import MultivariateNormal, Normal

from ctm import karras_grid
from ctm.editing import averaging, masking, replace, solve_guided
from ctm.likelihood import estimate_log_density
from ctm.sampling import dpmpp_2m, gamma, heun
from ctm.scaling import Scaling

from ..conftest import slow

SMALL = GaussianFields(offset=(0.3, -0.2), sides=(4, 6))
ONE = {"length_scale": 1.7, "variance": 1.3}


def rows(num, **values):
    return {name: torch.full((num,), value, dtype=torch.float64) for name, value in (values or ONE).items()}


def covariance(model, condition=ONE):
    """Dense (n, n), from the covariance of two cells: the sum over cosines, written out, times that of the channels."""
    _, height, width = model.shape
    cells = [(i, j) for i in range(height) for j in range(width)]
    waves = []
    density = []
    for a in range(height):
        for b in range(width):
            wave = torch.tensor(
                [
                    math.cos(math.pi * a * (i + 0.5) / height) * math.cos(math.pi * b * (j + 0.5) / width)
                    for i, j in cells
                ],
                dtype=torch.float64,
            )
            waves.append(wave / wave.norm())
            square = (math.pi * a / height) ** 2 + (math.pi * b / width) ** 2
            density.append((1 + condition["length_scale"] ** 2 * square) ** -2)
    waves, density = torch.stack(waves), torch.tensor(density, dtype=torch.float64)
    cells_of = waves.T @ ((condition["variance"] * density / density.mean())[:, None] * waves)
    return torch.kron(model.channels, cells_of)


def law(model, sigma=0.0):
    """N(m, Σ + sigma²), by torch's own density."""
    dense = covariance(model)
    mean = model.offset[:, None, None].expand(model.shape).reshape(-1)
    return MultivariateNormal(mean, dense + sigma**2 * torch.eye(len(dense), dtype=torch.float64))


def test_density_and_score_are_the_gaussians():
    x = torch.randn(5, *SMALL.shape, dtype=torch.float64, requires_grad=True)
    truth = law(SMALL, 0.4).log_prob(x.flatten(1))
    torch.testing.assert_close(SMALL.log_prob(x, 0.4, rows(5)), truth, rtol=1e-10, atol=0)
    (slope,) = torch.autograd.grad(truth.sum(), x)
    torch.testing.assert_close(SMALL.score(x, 0.4, rows(5)), slope, rtol=1e-9, atol=1e-9)
    denoised = x + 0.16 * slope  # Tweedie's formula
    torch.testing.assert_close(SMALL.denoise(x, 0.4, rows(5)), denoised, rtol=1e-9, atol=1e-9)


def test_draws_have_the_covariance_that_is_said():
    num = 20_000
    drawn = SMALL.sample(rows(num), seed=1).flatten(1)
    truth = law(SMALL)
    unit = torch.linalg.solve_triangular(truth.scale_tril, (drawn - truth.mean).T, upper=False)
    assert float(unit.mean(dim=1).abs().max()) < 5 / num**0.5
    assert float((unit @ unit.T / num - torch.eye(len(unit))).abs().max()) < 5 * (2 / num) ** 0.5


def test_the_jump_is_the_flow():
    """Heun's error falls with the square of the step, and two jumps are one."""
    condition = {name: values.double() for name, values in conditions(6).items()}
    model = GaussianFields()
    t, s = torch.full((6,), 3.0, dtype=torch.float64), torch.full((6,), 0.5, dtype=torch.float64)
    x = 3 * torch.randn(6, *model.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    exact = model.jump(x, t, s, condition)
    errors = []
    for steps in (20, 40):
        levels = torch.linspace(3.0, 0.5, steps + 1, dtype=torch.float64)
        errors.append(float((heun(model, x, levels, condition=condition) - exact).norm()))
    assert math.log2(errors[0] / errors[1]) == pytest.approx(2, abs=0.1)
    middle = model.jump(x, t, torch.full_like(t, 1.1), condition)
    torch.testing.assert_close(model.jump(middle, torch.full_like(t, 1.1), s, condition), exact, rtol=1e-10, atol=1e-10)
    assert torch.equal(model.jump(x, t, t, condition), x)


def test_the_likelihood_is_the_closed_form():
    """The density that the flow gives to N(0, sigma_max²) is known too, and differs from the data's by the little that is left of
    the data under noise of sigma_max: of a mean m, about |m|/sigma_max."""
    model = GaussianFields(offset=(0.3, -0.2), sides=(2, 3))
    condition = rows(3)
    x = model.sample(condition, seed=2) + 0.002 * torch.randn(3, *model.shape, dtype=torch.float64)
    found = estimate_log_density(model, x, condition, trace="exact", rtol=1e-5, atol=1e-5).value
    low, high = torch.full((3,), 0.002, dtype=torch.float64), torch.full((3,), 80.0, dtype=torch.float64)
    volume = ((model.variances(condition) + 80**2) / (model.variances(condition) + 0.002**2)).log().flatten(1).sum(
        dim=1
    ) / 2
    noise = Normal(0.0, 80.0).log_prob(model.jump(x, low, high, condition)).flatten(1).sum(dim=1)
    torch.testing.assert_close(found, noise + volume, rtol=0, atol=2e-3)
    left = float(model.offset.square().sum() * 6) ** 0.5 / 80
    torch.testing.assert_close(found, model.log_prob(x, 0.002, condition), rtol=0, atol=5 * left)


def test_another_scale_is_the_same_law():
    scaling = Scaling("standard", (0.5, -1.0), (2.0, 0.7))
    model = SMALL.scaled(scaling)
    x = SMALL.sample(rows(4), seed=3)
    volume = SMALL.shape[1] * SMALL.shape[2] * (math.log(2.0) + math.log(0.7))
    moved = (x - torch.tensor([0.5, -1.0])[:, None, None]) / torch.tensor([2.0, 0.7], dtype=torch.float64)[
        :, None, None
    ]
    torch.testing.assert_close(model.log_prob(moved, 0.0, rows(4)) - volume, SMALL.log_prob(x, 0.0, rows(4)))


def test_a_field_without_its_condition_is_refused():
    with pytest.raises(
        ValueError, match="must have length_scale and variance: without them the fields are no Gaussian"
    ):
        SMALL.denoise(torch.zeros(1, *SMALL.shape), torch.ones(1), {"variance": torch.ones(1)})


@pytest.mark.parametrize("kind", ["points", "averages"])
def test_the_posterior_is_the_law_of_draws_that_fit(kind):
    """Among fields that fit y the posterior's density is the prior's, but for a constant."""
    known = torch.zeros(SMALL.shape, dtype=torch.bool)
    known[0, 1, 2] = known[0, 3, 4] = known[1, 0, 5] = True
    operator = masking(known) if kind == "points" else averaging((4, 6), (2, 2))
    truth = SMALL.sample(rows(1), seed=4)
    found = given(SMALL, operator, operator.A(truth), ONE)
    drawn = found.sample(4, seed=5)
    torch.testing.assert_close(operator.A(drawn), operator.A(truth).expand_as(operator.A(drawn)), rtol=0, atol=1e-7)
    positive = found.widths > 1e-9
    assert int(positive.sum()) == SMALL.shape[0] * 24 - (3 if kind == "points" else 8)
    along = ((drawn.flatten(1) - found.mean) @ found.axes)[:, positive]
    own = -(along.square() / found.widths[positive]).sum(dim=1) / 2
    prior = SMALL.log_prob(drawn, 0.0, rows(4))
    torch.testing.assert_close(own - own[0], prior - prior[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("sampler", [gamma, heun, dpmpp_2m])
def test_samplers_give_the_spectrum(sampler):
    """Each mode of 400 samples divided by its exact deviation has variance 1; gamma's jumps are exact from the first."""
    num, steps = 400, {gamma: 1, heun: 60, dpmpp_2m: 120}[sampler]
    condition = rows(num)
    generator = torch.Generator().manual_seed(6)
    x = 80 * torch.randn(num, *SMALL.shape, dtype=torch.float64, generator=generator)
    made = sampler(SMALL, x, karras_grid(steps, dtype=torch.float64), condition=condition)
    unit = SMALL.modes(made - SMALL.offset[:, None, None]) / SMALL.variances(condition).sqrt()
    assert float(unit.var() - 1) == pytest.approx(0, abs=5 * math.sqrt(2 / unit.numel()) + 0.01)


@pytest.fixture(scope="module")
def points():
    """Four cells that go together, measured: (operator, y (1, …), the posterior)."""
    known = torch.zeros(SMALL.shape, dtype=torch.bool)
    known[0, 1, 2] = known[0, 1, 3] = known[0, 3, 4] = known[1, 0, 5] = True
    operator = masking(known)
    y = operator.A(SMALL.sample(rows(1), seed=4))
    return operator, y, given(SMALL, operator, y, ONE)


NUM = 200
CHANCE = 1 / NUM**0.5  # what the mean of as many exact draws shows, in deviations; over 44 modes it varies by a tenth


@pytest.mark.parametrize(("iterations", "biased"), [(1, True), (8, False)])
def test_guidance_is_the_posterior_if_it_solves_for_all_points(points, iterations, biased):
    """One iteration of conjugate gradients cannot know that neighbours go together. Euler's 60 steps leave a tenth of the
    variance out, as of one measured number (tests/editing)."""
    operator, y, posterior = points
    y = y.expand(NUM, *SMALL.shape)
    made = solve_guided(SMALL, operator, y, steps=60, iterations=iterations, clamp=False, condition=rows(NUM))
    errors = posterior.errors(made)
    assert (errors.mean > 1.8 * CHANCE) if biased else (errors.mean < 1.4 * CHANCE)
    assert errors.spread == pytest.approx(0.92, abs=0.06)
    torch.testing.assert_close(operator.A(made), y)


@pytest.mark.parametrize(("rounds", "biased"), [(1, True), slow(60, False)])
def test_replacement_tends_to_the_posterior_with_rounds_at_small_levels(points, rounds, biased):
    operator, y, posterior = points
    levels = torch.tensor([1.5, 0.7, 0.4, 0.25, 0.15, 0.08, 0.002], dtype=torch.float64)
    options = {"grid": levels, "rounds": rounds, "clamp": False, "condition": rows(NUM)}
    errors = posterior.errors(replace(SMALL, operator, y.expand(NUM, *SMALL.shape), **options))
    assert (errors.mean > 3 * CHANCE) if biased else (errors.mean < 1.4 * CHANCE)
    assert biased or errors.spread == pytest.approx(1, abs=0.06)


def test_iterations_that_are_none_are_refused(points):
    with pytest.raises(ValueError, match="iterations must be a whole number of at least 1, got 0"):
        solve_guided(SMALL, *points[:2], iterations=0, condition=rows(1))
