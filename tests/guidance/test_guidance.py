import math

import pytest
import torch

from ctm import generate
from ctm.guidance import (
    Autoguided,
    BetweenConditions,
    ClassifierFree,
    ClassifierGuided,
    Limited,
    LossDescent,
    LossGuided,
    Thresholded,
)
from ctm.noise import karras_grid
from ctm.sampling import gamma, heun
from ctm.teachers import GaussianMixture

from ..conftest import mixture, slow
from ..editing.posterior import Jumps
from ..energy import energy_distance, null_bound


class Counted:
    """A model that counts what it is asked."""

    shape, num_classes = (2,), 4

    def __init__(self, model) -> None:
        self.inner, self.calls = model, []

    def denoise(self, x, t, labels=None):
        self.calls.append(len(x))
        return self.inner.denoise(x, t, labels)

    def jump(self, x, t, s, labels=None):
        self.calls.append(len(x))
        return self.inner.jump(x, t, s, labels)


def noisy_classifier(teacher):
    """ln p(k | x_t) + const, the mixture's own."""
    return lambda x, t: teacher._logits(x, t**2 + teacher.std**2, None)


def clean_classifier(teacher):
    return lambda x: teacher._logits(x, torch.full((len(x),), teacher.std**2, dtype=x.dtype), None)


@pytest.fixture
def points():
    """x, t, s and labels of eight samples at many levels."""
    t = torch.logspace(-2, 1.9, 8, dtype=torch.float64)
    x = (1 + t[:, None]) * torch.randn(8, 2, dtype=torch.float64)
    return x, t, 0.3 * t, torch.arange(8) % 4


def test_classifier_free_guidance_is_a_line_through_both(points):
    x, t, s, labels = points
    teacher = mixture(2)
    for name, given in (("denoise", (x, t)), ("jump", (x, t, s))):
        plain, labelled = getattr(teacher, name)(*given), getattr(teacher, name)(*given, labels)
        for scale in (0.0, 1.0, 3.0):
            made = getattr(ClassifierFree(teacher, scale), name)(*given, labels)
            torch.testing.assert_close(made, plain + scale * (labelled - plain), rtol=1e-9, atol=1e-9)


def test_classifier_free_guidance_is_one_call_of_twice_the_batch(points):
    x, t, s, labels = points
    model = Counted(mixture(2))
    ClassifierFree(model, 2.0).jump(x, t, s, labels)
    ClassifierFree(model, 1.0).jump(x, t, s, labels)
    assert model.calls == [16, 8]
    with pytest.raises(ValueError, match="classifier-free guidance needs labels"):
        ClassifierFree(model, 2.0).denoise(x, t)


def test_a_sample_without_a_label_is_not_guided(points):
    x, t, s, _ = points
    teacher, none = mixture(2), torch.full((8,), -1)
    guided = ClassifierFree(teacher, 4.0), ClassifierGuided(teacher, clean_classifier(teacher), 4.0)
    for model in guided:
        torch.testing.assert_close(model.denoise(x, t, none), teacher.denoise(x, t))
        torch.testing.assert_close(model.jump(x, t, s, none), teacher.jump(x, t, s), rtol=1e-9, atol=1e-9)


def test_the_exact_noisy_classifier_makes_the_exact_conditional(points):
    """Bayes: the score of x given y is the score plus ∇ log p(y | x)."""
    x, t, _, labels = points
    teacher = mixture(2)
    guided = ClassifierGuided(teacher, noisy_classifier(teacher), noisy=True)
    torch.testing.assert_close(guided.denoise(x, t, labels), teacher.denoise(x, t, labels), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(guided.score(x, t, labels), teacher.score(x, t, labels), rtol=1e-7, atol=1e-7)


def test_a_clean_classifier_is_exact_at_small_levels(points):
    x, _, _, labels = points
    teacher = mixture(2)
    guided = ClassifierGuided(teacher, clean_classifier(teacher))
    errors = []
    for level in (0.2, 0.02, 0.002):
        t = torch.full((8,), level, dtype=torch.float64)
        change = teacher.denoise(x, t, labels) - teacher.denoise(x, t)
        error = guided.denoise(x, t, labels) - teacher.denoise(x, t, labels)
        errors.append(float(error.norm() / change.norm()))
    assert errors[2] < 1e-3
    assert errors[1] < errors[0] / 10


@pytest.mark.parametrize("dimensions", [2, slow(64)])
def test_classifier_guidance_samples_the_known_conditional(dimensions):
    """By Heun on the guided denoiser, in energy distance, mean and variance, and by 64 guided jumps; one, two and four guided
    jumps are far off, and 16 are between (docs/sampling.md)."""
    teacher, n = mixture(dimensions), 500
    guided = ClassifierGuided(teacher, noisy_classifier(teacher), noisy=True)
    labels = torch.full((n,), 2)
    guided_jumps = ClassifierGuided(Jumps(teacher, 16), noisy_classifier(teacher), noisy=True)
    alone = GaussianMixture(teacher.means[2:3], teacher.std, torch.ones(1))
    bound, truth = null_bound(alone.sample, n), alone.sample(n, seed=51)
    start = alone.sample(n, seed=50) + 80 * torch.randn(n, dimensions, dtype=torch.float64)
    by_denoiser = heun(guided, start, karras_grid(60, dtype=torch.float64), condition=labels)
    assert energy_distance(by_denoiser, truth) < bound
    error = (by_denoiser.mean(0) - teacher.means[2]) / (teacher.std / n**0.5)
    assert float(error.abs().max()) < 4
    covariance = by_denoiser.T.cov() / teacher.std**2 - torch.eye(dimensions)
    assert float(covariance.abs().max()) < 5 * (2 / n) ** 0.5
    distance = {
        k: energy_distance(gamma(guided_jumps, start, karras_grid(k).double(), condition=labels), truth)
        for k in (1, 2, 4, 16, 64)
    }
    print(
        f"{dimensions}-d, guided jumps: " + ", ".join(f"{k}: {d / bound:.1f}" for k, d in distance.items()) + " bounds"
    )
    assert distance[64] < distance[16] < distance[1]
    assert distance[64] < 3 * bound
    assert min(distance[k] for k in (1, 2, 4)) > 5 * bound


def test_a_guided_jump_errs_in_the_second_order():
    """Against the exact conditional jump: halving the jump divides the error by four."""
    teacher = mixture(2)
    guided = ClassifierGuided(teacher, noisy_classifier(teacher), noisy=True)
    x, labels = torch.randn(50, 2, dtype=torch.float64), torch.arange(50) % 4
    t = torch.full((50,), 0.5, dtype=torch.float64)
    errors = []
    for width in (0.04, 0.02, 0.01):
        made, truth = (model.jump(x, t, t - width, labels) for model in (guided, teacher))
        errors.append((made - truth).norm(dim=1).mean().item())
    assert math.log2(errors[0] / errors[1]) == pytest.approx(2, abs=0.15)
    assert math.log2(errors[1] / errors[2]) == pytest.approx(2, abs=0.1)


def test_loss_guidance_is_exact_on_a_gaussian_with_the_right_variance():
    """x0 ~ N(0, c²), y = x0 + r·n: E[x0 | x_t, y] follows from the loss |y − x0|²/(2v) with v = r² + c²t²/(c² + t²)."""
    c, r, level = 0.5, 0.3, 0.8
    teacher = GaussianMixture(torch.zeros(1, 3).double(), c, torch.ones(1))
    x, y = torch.randn(2, 5, 3, dtype=torch.float64)
    t = torch.full((5,), level, dtype=torch.float64)
    left = c**2 * level**2 / (c**2 + level**2)
    guided = LossGuided(teacher, lambda x0: (y - x0).square().sum(1) / (2 * (r**2 + left)))
    expected = (x / level**2 + y / r**2) / (1 / c**2 + 1 / level**2 + 1 / r**2)
    torch.testing.assert_close(guided.denoise(x, t), expected)


def test_descent_goes_down_its_loss(points):
    x, t, _, _ = points
    teacher, target = mixture(2), torch.tensor([1.0, -1.0], dtype=torch.float64)

    def loss(x0):
        return (x0 - target).square().sum(dim=1) / 2

    guided = LossDescent(teacher, loss, steps=3, rate=0.1)
    expected = target + 0.9**3 * (teacher.denoise(x, t) - target)
    torch.testing.assert_close(guided.denoise(x, t), expected)
    near = LossDescent(teacher, loss, steps=1, rate=0.5)
    end = 0.001 * t
    assert bool((loss(near.jump(x, t, end)) < loss(teacher.jump(x, t, end))).all())
    with pytest.raises(ValueError, match="steps of descent must be a whole number of at least 1, got 0"):
        LossDescent(teacher, loss, steps=0, rate=1.0)
    with pytest.raises(ValueError, match=r"a loss gives one number for each of 8 samples, got shape \(\)"):
        LossGuided(teacher, lambda x0: x0.sum()).denoise(x, t)


def test_autoguidance_goes_on_beyond_the_better_model(points):
    x, t, s, _ = points
    good, weak = mixture(2), mixture(2, std=0.5)
    made = Autoguided(good, weak, 2.0).denoise(x, t)
    torch.testing.assert_close(made, 2 * good.denoise(x, t) - weak.denoise(x, t))
    jumped = Autoguided(good, weak, 2.0).jump(x, t, s)
    torch.testing.assert_close(jumped, 2 * good.jump(x, t, s) - weak.jump(x, t, s), rtol=1e-9, atol=1e-9)
    bare = Autoguided(good, lambda x, t: x, 2.0)
    with pytest.raises(ValueError, match="jumps are guided by a weaker model that jumps"):
        bare.jump(x, t, s)


def test_an_interval_switches_guidance_off_outside_and_spares_its_calls(points):
    x, t, s, labels = points
    teacher = mixture(2)
    guided = ClassifierFree(Counted(teacher), 3.0)
    limited = Limited(guided, 0.1, 10.0)
    inside = (t >= 0.1) & (t <= 10)
    assert 0 < int(inside.sum()) < 8
    made = limited.denoise(x, t, labels)
    torch.testing.assert_close(made[inside], guided.denoise(x, t, labels)[inside])
    torch.testing.assert_close(made[~inside], teacher.denoise(x, t, labels)[~inside])
    guided.model.calls.clear()
    limited.jump(x, 20 * torch.ones(8).double(), s.clamp(max=15), labels)
    assert guided.model.calls == [8]
    with pytest.raises(ValueError, match="an interval of guidance needs 0 ≤ low < high, got 2 and 1"):
        Limited(guided, 2, 1)


def test_thresholding_bounds_the_image_and_leaves_what_fits():
    model = GaussianMixture(3 * torch.ones(1, 100).double(), 0.1, torch.ones(1))
    x, t = 5 * torch.randn(4, 100, dtype=torch.float64), torch.full((4,), 0.2, dtype=torch.float64)
    made = Thresholded(model).denoise(x, t)
    assert float(made.abs().max()) == pytest.approx(1)
    assert float(Thresholded(model).jump(x, t, 0.02 * t).abs().max()) < 0.98 * 1 + 0.02 * float(x.abs().max())
    small = GaussianMixture(torch.zeros(1, 100).double(), 0.1, torch.ones(1))
    torch.testing.assert_close(Thresholded(small).denoise(x / 100, t), small.denoise(x / 100, t))
    with pytest.raises(ValueError, match=r"quantile must be in \(0, 1\], got 1.5"):
        Thresholded(model, 1.5)


def test_between_two_labels(points):
    x, t, s, labels = points
    teacher, other = mixture(2), (torch.arange(8) + 1) % 4
    share = torch.tensor([0.0, 1.0] * 4)
    made = BetweenConditions(teacher, other, share).jump(x, t, s, labels)
    torch.testing.assert_close(made[::2], teacher.jump(x, t, s, labels)[::2], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(made[1::2], teacher.jump(x, t, s, other)[1::2], rtol=1e-9, atol=1e-9)
    with pytest.raises(ValueError, match="between two conditions: the call needs the same 8 samples, got 3"):
        BetweenConditions(teacher, other, share).denoise(x[:3], t[:3], labels[:3])


def test_between_two_conditions_of_fields(conditional):
    """Share 0 is the denoiser under the call's y, share 1 under the other, and a half is the mean of both; a row whose other y is
    absent has the denoiser without y there."""
    x, t = 3 * torch.randn(4, 2, dtype=torch.float64), torch.full((4,), 2.0, dtype=torch.float64)
    first, second = ({"y": torch.randn(4, 3, dtype=torch.float64)} for _ in range(2))
    second["y_present"] = torch.tensor([True, True, True, False])
    share = torch.tensor([0.0, 1.0, 0.5, 1.0])
    made = BetweenConditions(conditional, second, share).denoise(x, t, first)
    one, two = conditional.denoise(x, t, first), conditional.denoise(x, t, second)
    expected = torch.stack([one[0], two[1], (one[2] + two[2]) / 2, conditional.denoise(x, t)[3]])
    torch.testing.assert_close(made, expected, rtol=1e-12, atol=1e-12)


def test_guided_models_are_models(small_ctm):
    """generate takes them, wrappers nest, and a jump to the same level stays where it is."""
    guided = Thresholded(Limited(ClassifierFree(small_ctm, 2.0), 0.5, 60.0))
    assert (guided.shape, guided.num_classes, guided.sigma_max) == ((1, 8, 8), 10, 80.0)
    assert generate(guided, 3, steps=2, gamma=0.5, condition=3).shape == (3, 1, 8, 8)
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([1.0, 2.0])
    assert torch.equal(guided.jump(x, t, t, torch.tensor([1, 2])), x)
    half = guided.jump(x, t, torch.tensor([1.0, 1.0]), torch.tensor([1, 2]))
    assert bool(half.isfinite().all())
    with pytest.raises(ValueError, match="has no jump, so it cannot be guided in one"):
        ClassifierFree(lambda x, t, labels: x, 1.0).jump(x, t, t)
