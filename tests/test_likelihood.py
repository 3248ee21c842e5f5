import math

import pytest
import torch

from ctm.likelihood import (
    bits_per_dim,
    decode,
    encode,
    estimate_bits_per_dim,
    estimate_log_density,
    exact_trace,
    grid_log_density,
    hutchinson_trace,
    log_density,
    residual,
)
from ctm.noise import karras_grid
from ctm.teachers import GaussianMixture

from .conftest import mixture, slow


@pytest.mark.parametrize("dimensions", [2, slow(4)])
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
    loose = {"rtol": 1e-3, "atol": 1e-3}
    exact = log_density(teacher, x, trace="exact", **loose)
    many = log_density(teacher, x, probes=64, seed=1, **loose)
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
    with pytest.raises(ValueError, match="probe must be rademacher or gaussian, got 'cauchy'"):
        log_density(teacher, x, probe="cauchy")
    with pytest.raises(ValueError, match="probes must be a whole number of at least 1, got 0"):
        log_density(teacher, x, probes=0)
    with pytest.raises(ValueError, match=r"images must be a tensor of uint8 in 0 … 255, got torch\.float32"):
        bits_per_dim(teacher, x)
    with pytest.raises(ValueError, match="x must be floating point"):
        log_density(teacher, x.long())


@pytest.mark.parametrize(("dimensions", "points"), [(16, 50), pytest.param(64, 1000, marks=pytest.mark.slow)])
def test_the_exact_density_in_many_dimensions(dimensions, points):
    """Within 0.002 bits per dimension (0.0002 in 64 when measured with 1,000 points at 1e-3)."""
    teacher = mixture(dimensions)
    x = teacher.sample(points, seed=3)
    found = estimate_log_density(teacher, x, trace="exact", rtol=1e-4, atol=1e-4)
    truth = teacher.log_prob(x, teacher.sigma_min)
    assert abs(float((found.value - truth).mean())) / (dimensions * math.log(2)) < 0.002
    assert not found.standard_error.any()


@pytest.mark.parametrize("dimensions", [2, 64])
def test_hutchinson_is_within_a_hundredth_of_a_bit_and_two_standard_errors(dimensions):
    """1,000 points in 2 dimensions, 200 in 64; the standard error is that of the mean over the points. In two dimensions the
    scatter of one point's probes is itself the larger part of a bit."""
    teacher, points = mixture(dimensions), 1000 if dimensions == 2 else 200
    x = teacher.sample(points, seed=3)
    found = estimate_log_density(teacher, x, probes=8, rtol=1e-3, atol=1e-3, seed=1)
    unit = dimensions * math.log(2)
    difference = (found.value - teacher.log_prob(x, teacher.sigma_min)) / unit
    standard_error = float(difference.std()) / math.sqrt(points)
    assert abs(float(difference.mean())) < 0.01
    assert abs(float(difference.mean())) < 2 * standard_error + 0.001  # what the missing mean of the prior may cost


@pytest.mark.slow
def test_the_standard_error_is_the_scatter_of_the_probes():
    """Linear denoisers: one probe's trace has the known variance 2·Σ_{i≠j} A_ij² (±1) or 2·Σ A_ij² (normal, A symmetric)."""
    matrix = torch.tensor([[0.0, 0.3, 0.1], [0.3, 0.2, -0.2], [0.1, -0.2, 0.1]], dtype=torch.float64)
    squares = {"gaussian": 2 * matrix.square().sum(), "rademacher": 2 * (matrix - matrix.diag().diag()).square().sum()}

    def denoise(x, t, labels=None):
        return x @ matrix.T

    x, length = torch.zeros(300, 3, dtype=torch.float64), math.log(80 / 0.002)  # ∫ dσ/σ
    for kind, square in squares.items():
        found = estimate_log_density(denoise, x, probes=100, probe=kind, rtol=1e-3, atol=1e-3)
        expected = length * float(square.sqrt()) / 10
        assert found.standard_error.square().mean().sqrt().item() == pytest.approx(expected, rel=0.05)
        assert found.value.std().item() == pytest.approx(expected, rel=0.15)
    assert estimate_log_density(denoise, x[:2], rtol=1e-3, atol=1e-3).standard_error.isnan().all()


def test_the_error_falls_with_the_tolerance_at_a_reported_cost():
    teacher = mixture(2)
    x = teacher.sample(30, seed=3)
    truth = log_density(teacher, x, trace="exact", rtol=1e-9, atol=1e-9)
    calls = []

    def counted(x, t, labels=None):
        calls.append(1)
        return teacher.denoise(x, t, labels)

    errors, costs = [], []
    for tolerance in (1e-2, 1e-4, 1e-6):
        calls.clear()
        found = estimate_log_density(counted, x, trace="exact", rtol=tolerance, atol=tolerance)
        assert found.evaluations == len(calls)
        errors.append(float((found.value - truth).abs().mean()))
        costs.append(found.evaluations)
    assert errors[0] > 5 * errors[1] > 25 * errors[2]
    assert costs[0] < costs[1] < costs[2]


def test_the_way_to_noise_and_back():
    """The round trip's error falls with the tolerance; the noise of data is standard normal; a jump decodes as well."""
    teacher = mixture(2)
    x = teacher.sample(400, seed=3) + 0.002 * torch.randn(400, 2, dtype=torch.float64)
    errors = []
    for tolerance in (1e-3, 1e-5, 1e-7):
        z = encode(teacher, x, rtol=tolerance, atol=tolerance)
        errors.append(float((decode(teacher, z, rtol=tolerance, atol=tolerance) - x).abs().max()))
    assert errors[0] > 10 * errors[1] > 100 * errors[2]
    assert errors[2] < 1e-5
    assert z.mean(0).abs().max().item() < 4 / 20
    assert z.std(0).sub(1).abs().max().item() < 4 / math.sqrt(800)
    top, bottom = torch.full((400,), 80.0).double(), torch.full((400,), 0.002).double()
    torch.testing.assert_close(teacher.jump(80 * z, top, bottom), x, rtol=0, atol=1e-4)


def test_the_density_of_a_fixed_grid_is_a_change_of_variables():
    """One Gaussian: each Heun step up multiplies x by one number, so the density is a Gaussian with the product's variance."""
    teacher, grid = GaussianMixture(torch.zeros(1, 3).double(), 0.5, torch.ones(1)), karras_grid(6, dtype=torch.float64)
    x, product = teacher.sample(5), 1.0
    for low, high in zip(grid.flip(0)[:-1].tolist(), grid.flip(0)[1:].tolist(), strict=True):
        slope = [level / (level**2 + 0.25) for level in (low, high)]
        product *= 1 + (high - low) / 2 * (slope[0] + slope[1] * (1 + (high - low) * slope[0]))
    scale = 80 / product
    expected = -x.square().sum(1) / (2 * scale**2) - 3 / 2 * math.log(2 * math.pi * scale**2)
    torch.testing.assert_close(grid_log_density(teacher, x, grid), expected)


@pytest.mark.slow
def test_the_density_of_a_fixed_grid_tends_to_the_flows_in_second_order():
    teacher = mixture(2)
    x = teacher.sample(100, seed=3)
    truth = log_density(teacher, x, trace="exact", rtol=1e-9, atol=1e-9)
    errors = [
        float((grid_log_density(teacher, x, karras_grid(n, dtype=torch.float64)) - truth).abs().mean())
        for n in (32, 64, 128)
    ]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(2, abs=0.25)
    assert math.log2(errors[1] / errors[2]) == pytest.approx(2, abs=0.15)


def test_batches_of_images_are_numbered():
    teacher = GaussianMixture(torch.zeros(1, 1, 2, 2, dtype=torch.float64), 0.5, torch.ones(1))
    images = torch.randint(60, 200, (6, 1, 2, 2), dtype=torch.uint8)
    whole = estimate_bits_per_dim(teacher, images, probes=3, probe="gaussian")
    last = estimate_bits_per_dim(teacher, images[4:], probes=3, probe="gaussian", first=4)
    torch.testing.assert_close(last.value, whole.value[4:], rtol=0, atol=1e-3)
    torch.testing.assert_close(last.standard_error, whole.standard_error[4:], rtol=0, atol=1e-3)
    assert bool((whole.standard_error > 0).all())


def test_encode_from_a_higher_level_is_the_flow_from_there(mixture_16d):
    """A mixture's flow is known: x at level 0.3 goes to σ_max as its own jump takes it."""
    x = mixture_16d.sample(5) + 0.3 * torch.randn(5, 16, dtype=torch.float64)
    expected = mixture_16d.jump(x, torch.full((5,), 0.3), torch.full((5,), 80.0)) / 80
    found = encode(mixture_16d, x, level=0.3, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match=r"level must be in .*, got 100: it is between sigma_min and sigma_max"):
        encode(mixture_16d, x, level=100)
