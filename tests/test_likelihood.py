import math

import pytest
import torch

from ctm.likelihood import (
    bits_per_dim,
    exact_trace,
    hutchinson_trace,
    log_density,
    residual,
)
from ctm.teachers import GaussianMixture

from .conftest import mixture


@pytest.mark.parametrize("dimensions", [2, 4])
def test_the_exact_density_of_a_mixture(dimensions):
    """The mean of 1,000 points is within 0.002 bits per dimension of the closed form at sigma_min."""
    teacher = mixture(dimensions)
    x = teacher.sample(1000, seed=3)
    nats = log_density(teacher, x, trace="exact")
    truth = teacher.log_prob(x, teacher.sigma_min)
    assert nats.dtype == torch.float64
    assert nats.shape == (1000,)
    assert abs(float((nats - truth).mean())) / (dimensions * math.log(2)) < 0.002
    assert float((nats - truth).abs().max()) / (dimensions * math.log(2)) < 0.1


def test_a_label_conditions_the_density():
    teacher = mixture(2)
    x, labels = teacher.sample(20), torch.arange(20) % 4
    nats = log_density(teacher, x, labels, trace="exact")
    alone = [
        GaussianMixture(teacher.means[k : k + 1], teacher.std, torch.ones(1)).log_prob(x[i : i + 1], 0.002)
        for i, k in enumerate(labels)
    ]
    # of a point in another component the density is tiny, and the prior's missing mean counts for more
    near = torch.cat(alone) > -20
    torch.testing.assert_close(nats[near], torch.cat(alone)[near], rtol=0, atol=0.25)


def test_float32_stays_near_float64():
    teacher = mixture(4)
    x = teacher.sample(50)
    double, single = (log_density(teacher, part, trace="exact") for part in (x, x.float()))
    torch.testing.assert_close(single, double, rtol=0, atol=5e-3)


def test_hutchinson_is_unbiased_and_depends_on_seed_and_place_alone():
    teacher = mixture(4)
    x = teacher.sample(40)
    exact = log_density(teacher, x, trace="exact")
    many = log_density(teacher, x, probes=64, seed=1)
    assert float((many - exact).mean().abs()) < 0.2
    one = log_density(teacher, x, seed=1)
    torch.testing.assert_close(one, log_density(teacher, x, seed=1))
    assert not torch.allclose(one, log_density(teacher, x, seed=2), atol=1e-3)
    torch.testing.assert_close(log_density(teacher, x[:10], seed=1), one[:10], rtol=0, atol=1e-3)


def test_one_gaussian_needs_no_luck():
    """The trace of a multiple of the identity is exact for every probe of ±1."""
    teacher = GaussianMixture(torch.zeros(1, 3, dtype=torch.float64), 0.4, torch.ones(1))
    x = teacher.sample(10)
    torch.testing.assert_close(log_density(teacher, x), teacher.log_prob(x, 0.002), rtol=0, atol=1e-3)


def test_the_exact_trace_is_that_of_the_closed_form():
    """One Gaussian: D = c²x/(c² + σ²) has the trace n·c²/(c² + σ²)."""
    c, x = 0.4, torch.randn(3, 2, 4, dtype=torch.float64)
    sigma = torch.tensor([0.1, 0.4, 2.0], dtype=torch.float64)
    _, trace = exact_trace(lambda x, s: x * (c**2 / (c**2 + s**2))[:, None, None], x, sigma)
    torch.testing.assert_close(trace, 8 * c**2 / (c**2 + sigma**2))


def test_probes_are_averaged():
    matrix = torch.randn(3, 3, dtype=torch.float64)
    x, probes = torch.randn(2, 3, dtype=torch.float64), torch.randn(5, 2, 3, dtype=torch.float64)
    _, trace = hutchinson_trace(probes)(lambda x, s: x @ matrix.T, x, torch.ones(2))
    torch.testing.assert_close(trace, torch.einsum("pbi,ij,pbj->pb", probes, matrix, probes).mean(0))


def test_bits_per_dimension_of_uint8_images():
    """7 − log2 p(x)/n with x = (v + u)/128 − 1: a broad Gaussian has the density of its formula, up to the dequantisation."""
    teacher = GaussianMixture(torch.zeros(1, 1, 2, 2, dtype=torch.float64), 0.5, torch.ones(1))
    images = torch.randint(60, 200, (6, 1, 2, 2), dtype=torch.uint8)
    bits = bits_per_dim(teacher, images)
    centre = (images.double() + 0.5) / 128 - 1
    expected = 7 - teacher.log_prob(centre, 0.002) / (4 * math.log(2))
    assert bits.shape == (6,)
    torch.testing.assert_close(bits, expected, rtol=0, atol=0.03)
    torch.testing.assert_close(bits_per_dim(teacher, images[:3]), bits[:3], rtol=0, atol=1e-3)
    assert not torch.equal(bits, bits_per_dim(teacher, images, seed=1))


def test_residual_at_the_right_level_bounds_the_density():
    """−ln p(x) ≤ E[−ln p_σ(x_σ)] + E[residual] at σ_min, nearly with equality."""
    teacher = mixture(2)
    x = teacher.sample(20_000)
    sigma, noise = torch.full((len(x),), 0.002, dtype=torch.float64), torch.randn_like(x)
    bound = -teacher.log_prob(x + 0.002 * noise, 0.002) + residual(teacher.denoise, x, sigma, noise)
    assert float((bound + teacher.log_prob(x)).mean()) == pytest.approx(0, abs=0.03)


def test_a_network_in_float32_has_a_density(small_ctm):
    images = torch.randint(0, 256, (2, 1, 8, 8), dtype=torch.uint8)
    bits = bits_per_dim(small_ctm, images, torch.tensor([3, -1]), rtol=1e-2, atol=1e-2)
    assert bool(bits.isfinite().all())
    assert all(parameter.grad is None for parameter in small_ctm.parameters())


def test_mistakes_are_said():
    teacher, x = mixture(2), torch.zeros(1, 2)
    with pytest.raises(ValueError, match="trace must be hutchinson or exact, got 'both'"):
        log_density(teacher, x, trace="both")
    with pytest.raises(ValueError, match="probes must be at least 1, got 0"):
        log_density(teacher, x, probes=0)
    with pytest.raises(ValueError, match=r"images must be uint8 in 0 … 255, got torch\.float32"):
        bits_per_dim(teacher, x)
    with pytest.raises(ValueError, match="x must be floating point"):
        log_density(teacher, x.long())
