import pytest
import torch

from ctm.noise import karras_grid
from ctm.sampling import luma, patch_means, restore
from ctm.teachers import GaussianMixture


@pytest.mark.parametrize("projection", [patch_means(4), luma])
def test_projections_are_projections(projection):
    """Linear, idempotent and orthogonal: ⟨Ax, y − Ay⟩ = 0."""
    x, y = torch.randn(2, 2, 3, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(projection(projection(x)), projection(x))
    torch.testing.assert_close(projection(x + 2 * y), projection(x) + 2 * projection(y))
    assert float((projection(x) * (y - projection(y))).sum().abs()) < 1e-12 * 400


def test_patch_means_are_the_means_and_luma_the_known_grey():
    x = torch.randn(1, 3, 8, 8)
    projected = patch_means(4)(x)
    torch.testing.assert_close(projected[0, 1, :4, 4:], x[0, 1, :4, 4:].mean().expand(4, 4))
    weights = torch.tensor([0.2989, 0.5870, 0.1140])
    torch.testing.assert_close(torch.einsum("c,bchw->bhw", weights, luma(x)), torch.einsum("c,bchw->bhw", weights, x))


@pytest.mark.parametrize("projection", [patch_means(2), luma])
def test_a_restored_image_has_what_was_known_and_is_like_the_data(projection):
    """Two modes far apart: what is known of one of them decides for it."""
    means = torch.stack([torch.full((3, 4, 4), value, dtype=torch.float64) for value in (-0.6, 0.6)])
    teacher = GaussianMixture(means, 0.05, torch.ones(2))
    known = teacher.sample(6)
    x = 80 * torch.randn_like(known)
    result = restore(teacher, x, karras_grid(6, dtype=torch.float64), known, projection)
    torch.testing.assert_close(projection(result), projection(known))
    assert bool((result.mean(dim=(1, 2, 3)).sign() == known.mean(dim=(1, 2, 3)).sign()).all())


def test_unfitting_images_are_refused():
    teacher = GaussianMixture(torch.zeros(1, 3, 4, 4), 0.5, torch.ones(1))
    with pytest.raises(ValueError, match=r"known must be shaped like x, got \(1, 3, 8, 8\) and \(1, 3, 4, 4\)"):
        restore(teacher, torch.zeros(1, 3, 4, 4), karras_grid(2), torch.zeros(1, 3, 8, 8), luma)
    with pytest.raises(ValueError, match=r"multiples of the patch size 3, got \(4, 4\)"):
        restore(teacher, torch.zeros(1, 3, 4, 4), karras_grid(2), torch.zeros(1, 3, 4, 4), patch_means(3))
