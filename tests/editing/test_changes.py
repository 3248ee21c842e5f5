import pytest
import torch

from ctm.editing import denoise, interpolate, posterior_sample, spherical, stroke, stroking, variations
from ctm.requests import run
from ctm.sampling.driving import answer
from ctm.sampling.image_noise import ImageNoise
from ctm.teachers import GaussianMixture

from ..conftest import mixture
from ..energy import energy_distance, null_bound


def test_denoising_is_the_posterior_mean_and_its_samples_are_the_posteriors():
    """One Gaussian: x0 given x has mean x·c²/(c² + σ²) and variance c²σ²/(c² + σ²)."""
    c, sigma, n = 0.5, 0.7, 600
    teacher = GaussianMixture(torch.zeros(1, 2).double(), c, torch.ones(1))
    x = torch.tensor([[0.4, -0.8]], dtype=torch.float64).expand(n, 2)
    mean, variance = x[0] * c**2 / (c**2 + sigma**2), c**2 * sigma**2 / (c**2 + sigma**2)
    torch.testing.assert_close(denoise(teacher, x[:1], sigma)[0], mean)
    made = posterior_sample(teacher, x, sigma, steps=48)
    torch.testing.assert_close(made.mean(0), mean, rtol=0, atol=4 * (variance / n) ** 0.5)
    torch.testing.assert_close(
        made.var(0), torch.full((2,), variance).double(), rtol=0.25, atol=0
    )  # four standard errors
    with pytest.raises(ValueError, match=r"sigma must be above sigma_min = 0.002 and at most sigma_max = 80.0, got 90"):
        denoise(teacher, x, 90)


def test_a_stroke_keeps_less_at_higher_levels():
    teacher = mixture(2)
    image = teacher.sample(200)
    moved = [float((stroke(teacher, image, sigma) - image).norm(dim=1).mean()) for sigma in (0.01, 0.3, 20.0)]
    assert moved[0] < 0.05
    assert moved[0] < moved[1] < moved[2]


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_a_stroke_over_data_gives_data(share):
    teacher, n = mixture(2), 400
    made = stroke(teacher, teacher.sample(n, 5), 0.8, gamma_share=share)
    assert energy_distance(made, teacher.sample(n, seed=51)) < null_bound(teacher.sample, n)


@torch.no_grad()
def test_a_stroke_asked_for_step_by_step_is_the_same(small_ctm):
    options = {"steps": 3, "gamma_share": 0.6, "condition": torch.tensor([1, 2]), "seed": 5}
    image = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(3)) * 2 - 1
    plan = stroking(small_ctm, image, 4.0, **options)
    assert torch.equal(run(plan, lambda request: answer(small_ctm, request)), stroke(small_ctm, image, 4.0, **options))


def test_spherical_interpolation_keeps_the_length():
    a, b = torch.nn.functional.normalize(torch.randn(2, 5, 12, dtype=torch.float64), dim=-1)
    share = torch.linspace(0, 1, 5, dtype=torch.float64)
    made = spherical(a, b, share)
    torch.testing.assert_close(made.norm(dim=1), torch.ones(5).double())
    torch.testing.assert_close(made[0], a[0])
    torch.testing.assert_close(made[-1], b[-1])
    torch.testing.assert_close(spherical(a, a, share), a)


def test_an_interpolation_ends_at_its_images():
    teacher = mixture(2)
    a, b = teacher.sample(2, seed=4)
    made = interpolate(teacher, a, b, 5)
    torch.testing.assert_close(made[[0, -1]], torch.stack([a, b]), rtol=0, atol=0.01)
    labelled = interpolate(teacher, teacher.means[0], teacher.means[2], 3, condition=torch.tensor([0, 2]))
    torch.testing.assert_close(labelled[[0, -1]], teacher.means[[0, 2]], rtol=0, atol=0.01)
    with pytest.raises(
        ValueError, match="num must be a whole number of at least 2, got 1: an interpolation has its two ends"
    ):
        interpolate(teacher, a, b, 1)
    with pytest.raises(ValueError, match=r"images must have shape \(2,\), got \(1, 2\)"):
        interpolate(teacher, a[None], b, 3)


def test_an_interpolation_between_two_conditions_is_the_known_flow(conditional):
    """The denoiser is affine in y, so half of both is the denoiser under the mean of both y: the picture in the middle is the
    flow's image of the noise in the middle under that y. Up the flow the distance to the mean grows as √(t² + c²)."""
    images, y = torch.randn(2, 2, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)
    made = interpolate(conditional, *images, 3, condition={"y": y}, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(made[[0, 2]], images, rtol=0, atol=1e-3)
    low, top = torch.full((2,), 0.002).double(), torch.full((2,), 80.0).double()
    mean = y @ conditional.matrix.T + conditional.offset
    ends = (mean + (images - mean) * ((80**2 + 0.4**2) / (0.002**2 + 0.4**2)) ** 0.5) / 80
    middle = spherical(ends[:1], ends[1:], torch.tensor([0.5]).double())
    expected = conditional.jump(80 * middle, top[:1], low[:1], {"y": y.mean(0, keepdim=True)})
    torch.testing.assert_close(made[1:2], expected, rtol=0, atol=1e-3)


def test_a_variation_under_a_condition_is_the_known_flow(conditional):
    """amount 0 gives the image back, amount 1 the flow's images of fresh noise under its y."""
    image, y = torch.randn(2, dtype=torch.float64), torch.randn(1, 3, dtype=torch.float64)
    same = variations(conditional, image, 2, 0.0, condition={"y": y}, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(same, image.expand(2, 2), rtol=0, atol=1e-3)
    fresh = variations(conditional, image, 2, 1.0, condition={"y": y}, rtol=1e-6, atol=1e-6)
    noise = 80 * ImageNoise(0, range(2))(same)
    low, top = torch.full((2,), 0.002).double(), torch.full((2,), 80.0).double()
    torch.testing.assert_close(fresh, conditional.jump(noise, top, low, {"y": y.expand(2, 3)}), rtol=0, atol=1e-3)
    with pytest.raises(ValueError, match="label is the condition of a model of classes: give condition or label"):
        variations(conditional, image, 2, 0.5, condition={"y": y}, label=1)


def test_variations_go_from_the_image_to_fresh_samples():
    teacher = mixture(2)
    image = teacher.sample(1, seed=4)[0]
    same = variations(teacher, image, 3, 0.0)
    torch.testing.assert_close(same, image.expand(3, 2), rtol=0, atol=0.01)
    fresh = variations(teacher, image, 400, 1.0)
    assert energy_distance(fresh, teacher.sample(400, seed=51)) < null_bound(teacher.sample, 400)
    near = variations(teacher, image, 100, 0.1)
    assert (near - image).norm(dim=1).median() < (fresh - image).norm(dim=1).median() / 2
    with pytest.raises(ValueError, match=r"amount must be in \[0, 1\], got 2"):
        variations(teacher, image, 3, 2)
