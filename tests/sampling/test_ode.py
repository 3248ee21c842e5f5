import math

import pytest
import torch

from ctm.noise import karras_grid
from ctm.sampling import ancestral, dpmpp_2m, euler, heun, midpoint
from ctm.teachers import GaussianMixture

from ..conftest import mixture


def flow(model, x, grid, **options):
    """`ancestral` without its noise, for the tests of what is the same twice."""
    return ancestral(model, x, grid, eta=0.0, **options)


ALL = [euler, heun, midpoint, dpmpp_2m, flow]


def test_eighteen_levels_and_zero_make_35_evaluations():
    calls = []

    def denoiser(x, t, labels=None):
        calls.append(t[0].item())
        return x / (1 + t[:, None] ** 2)

    grid = torch.cat([karras_grid(17), torch.zeros(1)])
    heun(denoiser, torch.randn(3, 2), grid)
    assert len(calls) == 35
    assert min(calls) > 0


@pytest.mark.parametrize("sampler", ALL)
def test_a_bare_callable_and_labels(sampler):
    teacher, grid = mixture(2), karras_grid(6, dtype=torch.float64)
    x, labels = 80 * torch.randn(4, 2, dtype=torch.float64), torch.tensor([0, 1, 2, 3])
    by_model = sampler(teacher, x, grid, condition=labels)
    by_call = sampler(lambda x, t, labels=None: teacher.denoise(x, t, labels), x, grid, condition=labels)
    assert torch.equal(by_model, by_call)
    assert not torch.allclose(by_model, sampler(teacher, x, grid))


@pytest.mark.parametrize("sampler", ALL)
def test_callback_sees_the_denoised_image(sampler):
    teacher, grid, seen = mixture(2), karras_grid(3, dtype=torch.float64), []
    x = 80 * torch.randn(4, 2, dtype=torch.float64)
    result = sampler(teacher, x, grid, callback=seen.append)
    assert [step.index for step in seen] == [0, 1, 2]
    torch.testing.assert_close(seen[0].denoised, teacher.denoise(x, grid[:1].expand(4)))
    assert torch.equal(seen[-1].x, result)


@pytest.mark.parametrize("sampler", [euler, heun, dpmpp_2m, ancestral])
def test_a_final_zero_gives_the_denoised_image(sampler):
    teacher = mixture(2)
    x = 80 * torch.randn(4, 2, dtype=torch.float64)
    grid = karras_grid(5, dtype=torch.float64)
    torch.manual_seed(1)
    to_end = sampler(teacher, x, grid)
    torch.manual_seed(1)
    to_zero = sampler(teacher, x, torch.cat([grid, torch.zeros(1, dtype=torch.float64)]))
    torch.testing.assert_close(to_zero, teacher.denoise(to_end, grid[-1:].expand(4)))


def test_churn_keeps_the_distribution_and_raises_the_level():
    """One Gaussian: with churn the variance at the end is still c² + σ_min², up to Heun's error."""
    c, n = 0.5, 5000
    teacher = GaussianMixture(torch.zeros(1, 1).double(), c, torch.ones(1))
    x = math.sqrt(80**2 + c**2) * torch.randn(n, 1, dtype=torch.float64)
    levels = []
    result = heun(
        teacher, x, karras_grid(256, dtype=torch.float64), churn=40, callback=lambda step: levels.append(step.t)
    )
    assert result.var().item() == pytest.approx(c**2 + 0.002**2, rel=0.01 + 4 * math.sqrt(2 / n))
    draws = []
    grid = karras_grid(4, dtype=torch.float64)
    heun(teacher, x, grid, churn=2, churn_min=0.1, churn_max=50, noise=lambda x: draws.append(1) or torch.randn_like(x))
    assert len(draws) == int(((grid[:-1] >= 0.1) & (grid[:-1] <= 50)).sum())


def test_churn_noise_is_the_formulas():
    """t̂ = t + min(churn/N, √2 − 1)·t; the noise added is √(t̂² − t²)·ε."""
    seen = []

    def denoiser(x, t, labels=None):
        seen.append((x.clone(), t[0].item()))
        return torch.zeros_like(x)

    noise = torch.randn(3, 2, dtype=torch.float64)
    x, grid = torch.randn(3, 2, dtype=torch.float64), torch.tensor([2.0, 1.0], dtype=torch.float64)
    heun(denoiser, x, grid, churn=100, churn_noise=1.1, noise=lambda like: noise)
    raised = 2 * math.sqrt(2)
    assert seen[0][1] == pytest.approx(raised)
    torch.testing.assert_close(seen[0][0], x + 1.1 * math.sqrt(raised**2 - 4) * noise)


@pytest.mark.parametrize("sampler", ALL)
def test_float32_in_float32_out(sampler):
    assert sampler(mixture(2), 80 * torch.randn(4, 2), karras_grid(4)).dtype == torch.float32


def test_what_is_no_model_is_refused():
    with pytest.raises(ValueError, match="a model has denoise"):
        euler(3, torch.zeros(1, 2), karras_grid(2))


def test_the_midpoint_method_goes_to_zero_by_way_of_an_eighth():
    seen = []

    def denoiser(x, t, labels=None):
        seen.append(t[0].item())
        return torch.zeros_like(x)

    result = midpoint(denoiser, torch.ones(2, 3), torch.tensor([2.0, 0.0]))
    assert seen == pytest.approx([2.0, 2.0 / 8])
    assert float(result.abs().max()) < 1e-6


def test_ancestral_without_noise_is_euler_and_with_it_keeps_the_distribution():
    """One Gaussian: the variance at the end is c² + σ_min², up to the Euler steps' error."""
    c, n = 0.5, 5000
    teacher = GaussianMixture(torch.zeros(1, 1).double(), c, torch.ones(1))
    x, grid = math.sqrt(80**2 + c**2) * torch.randn(n, 1, dtype=torch.float64), karras_grid(512, dtype=torch.float64)
    plain = euler(teacher, x, grid)
    assert torch.equal(ancestral(teacher, x, grid, eta=0.0), plain)
    result = ancestral(teacher, x, grid)
    assert result.var().item() == pytest.approx(c**2 + 0.002**2, rel=0.01 + 4 * math.sqrt(2 / n))
    assert not torch.allclose(result, plain, atol=0.1)


def test_ancestral_draws_once_for_each_noisy_step():
    draws = []
    grid = torch.cat([karras_grid(4, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)])
    x = torch.randn(3, 2, dtype=torch.float64)
    ancestral(mixture(2), x, grid, noise=lambda like: draws.append(1) or torch.randn_like(like))
    assert len(draws) == 4


def test_eta_out_of_range_is_refused():
    with pytest.raises(ValueError, match=r"eta must be in \[0, 1\], got 1.5: 0 adds no noise"):
        ancestral(mixture(2), torch.zeros(1, 2), karras_grid(2), eta=1.5)
