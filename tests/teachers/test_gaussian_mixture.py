import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ctm.noise import karras_grid
from ctm.sampling import generate, heun
from ctm.teachers import GaussianMixture

from ..conftest import mixture, slow


def full(n: int, level: float) -> torch.Tensor:
    return torch.full((n,), level, dtype=torch.float64)


def normal_log_density(x, mean, variance):
    size = x.shape[1]
    return -((x - mean).square().sum(1) / variance + size * math.log(2 * math.pi * variance)) / 2


@given(sigma=st.floats(0, 80), seed=st.integers(0, 20))
def test_log_prob_is_the_sum_over_components(sigma, seed):
    teacher = mixture(3, seed=seed)
    x = torch.randn(5, 3, dtype=torch.float64) * (1 + sigma)
    parts = [
        w.log() + normal_log_density(x, mean, teacher.std**2 + sigma**2)
        for w, mean in zip(teacher.weights, teacher.means, strict=True)
    ]
    expected = torch.stack(parts).logsumexp(0)
    torch.testing.assert_close(teacher.log_prob(x, sigma), expected, rtol=1e-10, atol=1e-9)


@given(sigma=st.floats(0.01, 80), seed=st.integers(0, 20))
def test_score_is_the_gradient_of_log_prob_and_tweedie_holds(sigma, seed):
    teacher = mixture(2, seed=seed)
    x = (torch.randn(6, 2, dtype=torch.float64) * (1 + sigma)).requires_grad_()
    (gradient,) = torch.autograd.grad(teacher.log_prob(x, sigma).sum(), x)
    t = full(6, sigma)
    torch.testing.assert_close(teacher.score(x, t), gradient, rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(teacher.denoise(x, t), x + sigma**2 * gradient, rtol=1e-8, atol=1e-8)


def test_one_component_has_the_closed_form_flow():
    teacher = GaussianMixture(torch.tensor([[0.3, -0.2]]).double(), 0.5, torch.ones(1))
    x = 80 * torch.randn(10, 2, dtype=torch.float64)
    for s in (2.5, 0.002, 0.0):
        expected = teacher.means + (x - teacher.means) * math.sqrt((s**2 + 0.25) / (6400 + 0.25))
        torch.testing.assert_close(teacher.jump(x, full(10, 80), full(10, s)), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dimensions", [2, slow(16)])
def test_the_flow_satisfies_its_ode(dimensions):
    """d/ds of the jump is (x − D)/s, by central differences of the 1e-9 solution."""
    teacher = mixture(dimensions)
    x = 10 * torch.randn(8, dimensions, dtype=torch.float64)
    for s in (3.0, 0.5, 0.1):
        h = 1e-4 * s
        up, down = (teacher.jump(x, full(8, 10), full(8, s + d)) for d in (h, -h))
        here = teacher.jump(x, full(8, 10), full(8, s))
        flow = (here - teacher.denoise(here, full(8, s))) / s
        torch.testing.assert_close((up - down) / (2 * h), flow, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dimensions", [2, slow(16)])
def test_the_flow_agrees_with_itself(dimensions):
    """Two jumps are one, there and back is nothing, and rows do not depend on their neighbours: to 1e-8."""
    teacher = mixture(dimensions)
    x = 80 * torch.randn(32, dimensions, dtype=torch.float64)
    t, u, s = full(32, 80), torch.linspace(0.5, 20, 32, dtype=torch.float64), full(32, 0.0)
    direct = teacher.jump(x, t, s)
    torch.testing.assert_close(teacher.jump(teacher.jump(x, t, u), u, s), direct, rtol=0, atol=1e-8)
    torch.testing.assert_close(teacher.jump(direct, s, t), x, rtol=0, atol=1e-5)
    alone = torch.cat([teacher.jump(x[i : i + 1], t[:1], s[:1]) for i in range(3)])
    torch.testing.assert_close(alone, direct[:3], rtol=0, atol=1e-8)


def test_the_flow_agrees_with_a_fine_heun_walk():
    teacher = mixture(2)
    x = 80 * torch.randn(16, 2, dtype=torch.float64)
    walked = heun(teacher, x, karras_grid(1000, dtype=torch.float64))  # of second order: 16 times 5e-5 at 4,000 levels
    torch.testing.assert_close(walked, teacher.jump(x, full(16, 80), full(16, 0.002)), rtol=0, atol=8e-4)


def test_the_jump_to_the_same_level_is_x():
    teacher, x = mixture(2), torch.randn(4, 2, dtype=torch.float64)
    assert torch.equal(teacher.jump(x, full(4, 1.5), full(4, 1.5)), x)


def test_a_label_conditions_on_its_component():
    teacher = mixture(2)
    x, t, s = 5 * torch.randn(3, 2, dtype=torch.float64), full(3, 5), full(3, 0.1)
    labels = torch.tensor([2, -1, 0])
    for i, k in ((0, 2), (2, 0)):
        single = GaussianMixture(teacher.means[k : k + 1], teacher.std, torch.ones(1))
        row = slice(i, i + 1)
        torch.testing.assert_close(teacher.denoise(x, t, labels)[row], single.denoise(x[row], t[row]))
        torch.testing.assert_close(teacher.score(x, t, labels)[row], single.score(x[row], t[row]))
        torch.testing.assert_close(teacher.jump(x, t, s, labels)[row], single.jump(x[row], t[row], s[row]))
    torch.testing.assert_close(teacher.denoise(x, t, labels)[1], teacher.denoise(x, t)[1])
    torch.testing.assert_close(teacher.jump(x, t, s, labels)[1], teacher.jump(x, t, s)[1], rtol=0, atol=1e-8)


@settings(max_examples=10)
@given(seed=st.integers(0, 1000))
def test_samples_have_the_mixtures_moments(seed):
    teacher, n = mixture(2), 40_000
    x = teacher.sample(n, seed)
    assert torch.equal(x, teacher.sample(n, seed))
    mean = teacher.weights @ teacher.means
    torch.testing.assert_close(x.mean(0), mean, rtol=0, atol=5 * teacher.sigma_data / math.sqrt(n))
    spread = (x - mean).square().mean().sqrt().item()
    assert spread == pytest.approx(teacher.sigma_data, rel=0.02)


def test_jumps_of_images_and_float32():
    means = torch.randn(3, 1, 4, 4)
    teacher = GaussianMixture(means, 0.3, torch.ones(3))
    x = 80 * torch.randn(5, 1, 4, 4)
    result = teacher.jump(x, torch.full((5,), 80.0), torch.zeros(5))
    assert result.shape == x.shape
    assert result.dtype == torch.float32
    samples = generate(teacher, 5, condition=1)
    assert samples.shape == (5, 1, 4, 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(2, 2), 0.0, torch.ones(2)), "std must be above 0, got 0.0"),
        ((torch.zeros(2, 2), 0.1, torch.ones(3)), r"means must be \(K, \*shape\) and weights \(K,\)"),
        ((torch.zeros(2, 2), 0.1, torch.tensor([1.0, -1.0])), "weights must be non-negative"),
    ],
)
def test_unfitting_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        GaussianMixture(*arguments)
