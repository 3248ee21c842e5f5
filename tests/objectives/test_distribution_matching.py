"""Distribution matching against Gaussians, whose denoisers and divergences are known in closed form."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from ctm.noise import match_dims
from ctm.objectives import DistributionMatching, Lesson, Networks
from ctm.objectives.player import players_of
from ctm.teachers import ConditionalGaussian

from ..conftest import mixture
from .flows import F64
from .test_objectives import student

N = 40_000
MATRIX = torch.randn(3, 2, dtype=F64, generator=torch.Generator().manual_seed(3)) / 2
TRUTH = ConditionalGaussian(MATRIX, torch.zeros(3, dtype=F64), 0.4)


def scaled(error: float) -> ConditionalGaussian:
    """The Gaussian of (1 + error) times the truth's samples."""
    return ConditionalGaussian((1 + error) * MATRIX, torch.zeros(3, dtype=F64), (1 + error) * 0.4)


class Generator(nn.Module):
    """(1 + error) times the exact flow's end: samples of `scaled(error)`."""

    sigma_min, sigma_max, sigma_data, shape, conditioner = 0.002, 80.0, 0.5, TRUTH.shape, TRUTH.conditioner

    def __init__(self, error: float) -> None:
        super().__init__()
        self.error = nn.Parameter(torch.tensor(error, dtype=F64))

    def jump(self, x, t, s, condition=None):
        return (1 + self.error) * TRUTH.jump(x, t, torch.zeros_like(s), condition)


def gradients(way: DistributionMatching, error: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Each sample's loss (N,), and its gradient (N,) for the error, with the exact fake score: mean(h·y)/(1 + error)."""
    generator = Generator(error)
    networks = Networks(generator, None, TRUTH, {"fake_score": scaled(error)})
    x0 = torch.zeros(N, 3, dtype=F64)
    draw = way.draw(generator, x0, torch.Generator().manual_seed(0))
    found = way(networks, x0, None, draw)
    (mean,) = torch.autograd.grad(found.mean(), generator.error)
    sample = networks.made["sample"].detach()
    each = (way.direction(networks, sample, None, draw) * sample).mean(1) / (1 + error)
    assert each.mean().item() == pytest.approx(mean.item(), rel=1e-9, abs=1e-12)
    return found.detach(), each


@pytest.mark.parametrize("normalise", [False, True])
def test_the_exact_distribution_has_no_loss_and_a_wrong_one_is_led_back(normalise):
    way = DistributionMatching(normalise=normalise)
    found, each = gradients(way, 0.0)
    assert found.max().item() < 1e-10
    assert each.abs().max().item() < 1e-10
    for error in (0.1, -0.1):
        _, each = gradients(way, error)
        assert each.mean().item() * error > 4 * abs(error) * each.std().item() / N**0.5


@pytest.mark.parametrize("sigma", [0.1, 0.5, 3.0])
def test_its_gradient_is_the_one_of_the_divergence(sigma):
    """σ²·d/de KL(N(0, (1 + e)²Σ + σ²) ‖ N(0, Σ + σ²)), over the number of coordinates: with v = λ + σ² and v_e = (1 + e)²λ + σ²
    along each direction it is σ²·(1 + e)·λ·(1/v − 1/v_e). Within four standard errors."""
    error = 0.3
    way = DistributionMatching(levels=lambda n, **_: torch.full((n,), sigma, dtype=F64), normalise=False)
    _, each = gradients(way, error)
    variance = 0.4**2 + torch.linalg.eigvalsh(MATRIX @ MATRIX.T)
    v, wrong = variance + sigma**2, (1 + error) ** 2 * variance + sigma**2
    expected = (sigma**2 * (1 + error) * variance * (1 / v - 1 / wrong)).mean().item()
    standard_error = each.std().item() / N**0.5
    assert expected > 10 * standard_error
    assert each.mean().item() == pytest.approx(expected, abs=4 * standard_error)


class OffDenoiser(nn.Module):
    """The truth's denoiser plus error·σ/(1 + σ²)·x."""

    sigma_min, sigma_max, sigma_data, conditioner = 0.002, 80.0, TRUTH.sigma_data, TRUTH.conditioner

    def __init__(self, truth, error: float) -> None:
        super().__init__()
        self.truth, self.error = truth, nn.Parameter(torch.tensor(error, dtype=F64))

    def denoise(self, x, t, condition=None):
        return self.truth.denoise(x, t, condition) + self.error * match_dims(t / (1 + t**2), x) * x


@pytest.mark.parametrize("truth", [TRUTH, mixture(3)], ids=["Gaussian", "mixture"])
def test_the_fake_scores_fixed_point_is_the_samples_own_denoiser(truth):
    """On samples of a known distribution its mean gradient at the exact denoiser is zero within four standard errors of eight
    batches, and beyond them with the right sign at a wrong one."""
    way = DistributionMatching()
    player = way.player()

    def mean_gradients(error: float) -> torch.Tensor:
        fake, found = OffDenoiser(truth, error), []
        for seed in range(8):
            sample = truth.sample(4000, seed)
            sample = sample[0] if isinstance(sample, tuple) else sample
            draw = way.draw(fake, sample, torch.Generator().manual_seed(seed))
            lesson = Lesson(sample, None, {"sample": sample}, draw, step=0)
            loss, _ = player.loss(Networks(fake, players={"fake_score": fake}), lesson)
            found.append(torch.autograd.grad(loss, fake.error)[0])
        return torch.stack(found)

    exact = mean_gradients(0.0)
    assert abs(exact.mean().item()) < 4 * exact.std().item() / 8**0.5
    for error in (0.1, -0.1):
        wrong = mean_gradients(error)
        assert wrong.mean().item() * error > 4 * abs(error) * wrong.std().item() / 8**0.5


def test_the_fake_score_learns_ahead_of_the_student_from_a_copy_of_the_teacher():
    way, model = DistributionMatching(fake_steps=3, start=2), student()
    rhythm = players_of([way])[0].rhythm
    assert [rhythm.player_learns(step) for step in range(6)] == [False, False, True, True, True, True]
    assert [rhythm.student_learns(step) for step in range(6)] == [True, True, False, False, True, False]
    copy = way.player().build(Networks(model, None, model.requires_grad_(False)))
    assert copy is not model
    assert all(p.requires_grad for p in copy.parameters())
    assert (way.active(1), way.active(2), way.needs_teacher) == (False, True, True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fake_steps": 0}, "fake_steps must be at least 1 and start at least 0, got 0 and 0"),
        ({"fake_learning_rate": 0.0}, "fake_learning_rate must be above 0 and finite, got 0.0"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        DistributionMatching(**settings)


def test_a_teacher_without_weights_is_refused():
    with pytest.raises(ValueError, match="this GaussianMixture has no weights to train: give a network as the teacher"):
        DistributionMatching().check(student(), mixture(2))
    with pytest.raises(ValueError, match="give a network as the teacher"):
        DistributionMatching().player().build(Networks(student(), None, SimpleNamespace()))
