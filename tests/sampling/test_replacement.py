import pytest
import torch

from ctm.editing import averaging, greying
from ctm.noise import karras_grid
from ctm.sampling import restore
from ctm.teachers import GaussianMixture

from ..conftest import slow


@pytest.mark.parametrize("projection", [slow(averaging((4, 4), (2, 2)).projection), greying().projection])
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
        restore(teacher, torch.zeros(1, 3, 4, 4), karras_grid(2), torch.zeros(1, 3, 8, 8), greying().projection)
