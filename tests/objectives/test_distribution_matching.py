"""Distribution matching against Gaussians, whose denoisers and divergences are known in closed form."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from ctm import DiffusionModel
from ctm.networks import MLP, DDPMpp
from ctm.noise import match_dims
from ctm.objectives import DistributionMatching, Lesson, Networks
from ctm.objectives.divergences import ratio_weight
from ctm.objectives.player import players_of
from ctm.teachers import ConditionalGaussian

from ..conftest import mixture, random_weights
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


class WithRatio:
    """A Gaussian as the fake score, with the exact ratio of the truth's density to its own."""

    conditioner = TRUTH.conditioner

    def __init__(self, fake: ConditionalGaussian) -> None:
        self.fake = fake

    def denoise(self, x, t, condition=None):
        return self.fake.denoise(x, t, condition)

    def log_ratio(self, x, t, condition=None):
        return log_density(TRUTH, x, t) - log_density(self.fake, x, t)


def log_density(model: ConditionalGaussian, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """Of the model's samples noised to t, without condition; (B,)."""
    own = model.matrix @ model.matrix.T + model.std**2 * torch.eye(3, dtype=F64)
    covariance = own + t[0] ** 2 * torch.eye(3, dtype=F64)
    return torch.distributions.MultivariateNormal(torch.zeros(3, dtype=F64), covariance).log_prob(x)


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


def at(sigma: float):
    return lambda n, **_: torch.full((n,), sigma, dtype=F64)


@pytest.mark.parametrize("sigma", [0.3, 1.0])
def test_the_weights_of_the_forward_divergence_give_its_gradient(sigma):
    """σ²·d/de KL(N(0, v) ‖ N(0, v_e)) = σ²·(1 + e)·λ·(v_e − v)/v_e² in each direction, v and v_e as above."""
    error, generator = 0.1, Generator(0.1)
    way = DistributionMatching(levels=at(sigma), normalise=False, divergence="forward_kl")
    networks = Networks(generator, None, TRUTH, {"fake_score": WithRatio(scaled(error))})
    x0 = torch.zeros(N, 3, dtype=F64)
    way(networks, x0, None, draw := way.draw(generator, x0, torch.Generator().manual_seed(0)))
    sample = networks.made["sample"].detach()
    each = (way.direction(networks, sample, None, draw) * sample).mean(1) / (1 + error)
    variance = 0.4**2 + torch.linalg.eigvalsh(MATRIX @ MATRIX.T)
    v, wrong = variance + sigma**2, (1 + error) ** 2 * variance + sigma**2
    expected = (sigma**2 * (1 + error) * variance * (wrong - v) / wrong**2).mean().item()
    standard_error = each.std().item() / N**0.5
    assert expected > 8 * standard_error
    assert each.mean().item() == pytest.approx(expected, abs=4 * standard_error)


@pytest.mark.parametrize(
    ("divergence", "f"),
    [
        ("reverse_kl", lambda r: -r.log()),
        ("forward_kl", lambda r: r * r.log()),
        ("jensen_shannon", lambda r: r * r.log() - (r + 1) * ((r + 1) / 2).log()),
        ("hellinger", lambda r: 4 * (1 - r.sqrt())),
    ],
)
def test_every_weight_is_its_functions_second_derivative(divergence, f):
    r = torch.linspace(0.05, 20, 50, dtype=F64, requires_grad=True)
    (first,) = torch.autograd.grad(f(r).sum(), r, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), r)
    torch.testing.assert_close(ratio_weight(divergence, r.detach().log()), (r**2 * second).detach())


@pytest.mark.parametrize(("sigma", "alpha"), [(0.5, 1.0), (2.0, 1.2)])
def test_score_identity_distillation_has_its_gradient(sigma, alpha):
    """With a = λ/(λ + σ²), b the same of the samples and the fake score held fixed, d/de of the loss's mean in each direction is
    2·(1 + e)·λ·(a − b)·((1 − alpha)·(a − b) + b − 1). At the exact map there is none; a wrong one is led back."""
    way = DistributionMatching(levels=at(sigma), normalise=False, loss="sid", alpha=alpha, fake_steps=1)

    def found(error: float) -> torch.Tensor:
        """The gradients of 20 batches."""
        each = []
        for seed in range(20):
            generator, x0 = Generator(error), torch.zeros(N // 20, 3, dtype=F64)
            networks = Networks(generator, None, TRUTH, {"fake_score": scaled(error)})
            draw = way.draw(generator, x0, torch.Generator().manual_seed(seed))
            each.append(torch.autograd.grad(way(networks, x0, None, draw).mean(), generator.error)[0])
        return torch.stack(each)

    assert found(0.0).abs().max().item() < 1e-10
    variance = 0.4**2 + torch.linalg.eigvalsh(MATRIX @ MATRIX.T)
    for error in (0.2, -0.2):
        own = (1 + error) ** 2 * variance
        a, b = variance / (variance + sigma**2), own / (own + sigma**2)
        expected = (2 * (1 + error) * variance * (a - b) * ((1 - alpha) * (a - b) + b - 1)).mean().item()
        gradient = found(error)
        standard_error = gradient.std().item() / 20**0.5
        assert gradient.mean().item() == pytest.approx(expected, abs=4 * standard_error)
        assert gradient.mean().item() * error > 4 * abs(error) * standard_error


def test_score_identity_distillation_keeps_no_gradient_of_its_judges():
    model, teacher = student(), student()
    fake = student()
    way, x0 = DistributionMatching(loss="sid"), torch.zeros(8, 2)
    draw = way.draw(model, x0, torch.Generator().manual_seed(0))
    way(Networks(model, None, teacher, {"fake_score": fake}), x0, None, draw).mean().backward()
    assert all(p.grad is None and p.requires_grad for judge in (teacher, fake) for p in judge.parameters())
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


class OffRatio(nn.Module):
    """The exact ratio of two Gaussians' densities, plus error·(x₁/σ)."""

    sigma_min, sigma_max, sigma_data, conditioner = 0.002, 80.0, TRUTH.sigma_data, TRUTH.conditioner

    def __init__(self, error: float) -> None:
        super().__init__()
        self.exact, self.error = WithRatio(scaled(0.3)), nn.Parameter(torch.tensor(error, dtype=F64))

    def denoise(self, x, t, condition=None):
        return self.exact.denoise(x, t, condition)

    def log_ratio(self, x, t, condition=None):
        return self.exact.log_ratio(x, t, condition) + self.error * x[:, 0] ** 2


def test_the_learnt_ratios_fixed_point_is_the_ratio_of_the_densities():
    """Its mean gradient at the exact ratio is zero within four standard errors of sixteen batches, and beyond them with the right
    sign at a wrong one."""
    way = DistributionMatching(levels=at(0.5), divergence="jensen_shannon")
    player = way.player()

    def mean_gradients(error: float) -> torch.Tensor:
        fake, found = OffRatio(error), []
        for seed in range(16):
            data, sample = (model.sample(2000, seed)[0] for model in (TRUTH, scaled(0.3)))
            draw = way.draw(fake, sample, torch.Generator().manual_seed(seed))
            lesson = Lesson(data, None, {"sample": sample}, draw, step=0)
            loss, _ = player.loss(Networks(fake, players={"fake_score": fake}), lesson)
            found.append(torch.autograd.grad(loss, fake.error)[0])
        return torch.stack(found)

    exact = mean_gradients(0.0)
    assert abs(exact.mean().item()) < 4 * exact.std().item() / 4
    for error in (0.5, -0.5):
        wrong = mean_gradients(error)
        assert wrong.mean().item() * error > 4 * abs(error) * wrong.std().item() / 4


@pytest.mark.parametrize("network", ["mlp", "unet"])
def test_the_ratio_is_read_from_what_the_fake_score_encodes(network):
    """The denoiser is the copy's; only the head learns the ratio."""
    shape = (1, 8, 8)
    made = (
        MLP(shape, 3, width=8, blocks=2)
        if network == "mlp"
        else DDPMpp(shape, 3, channels=8, channel_mult=(1, 2), blocks=1)
    )
    teacher = DiffusionModel(random_weights(made), shape=shape, num_classes=3)
    fake = DistributionMatching(divergence="forward_kl").player().build(Networks(teacher, None, teacher))
    x, t, labels = torch.randn(4, *shape), torch.rand(4) + 0.1, torch.tensor([0, 2, -1, 1])
    assert torch.equal(fake.denoise(x, t, labels), teacher.denoise(x, t, labels))
    ratio = fake.log_ratio(x, t, labels)
    assert ratio.shape == (4,)
    ratio.sum().backward()
    assert all(p.grad is not None for p in fake.head.parameters())
    assert all(p.grad is None for p in fake.model.parameters())
    assert not torch.equal(ratio, fake.log_ratio(x, 2 * t, labels))


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
        ({"fake_learning_rate": 0.0}, r"fake_learning_rate must be above 0 and finite, got 0\.0"),
        ({"loss": "gan"}, "loss must be one of dmd, sid, got 'gan'"),
        ({"divergence": "kl"}, "divergence must be one of reverse_kl, forward_kl, jensen_shannon, hellinger, got 'kl'"),
        ({"loss": "sid", "divergence": "forward_kl"}, "leave divergence at reverse_kl, got forward_kl"),
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
