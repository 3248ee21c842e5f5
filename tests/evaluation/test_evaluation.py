import pytest
import torch

from ctm.data import load_images
from ctm.evaluation.classifier import train_classifier
from ctm.evaluation.frechet import frechet_distance


def gaussian(mean, deviations, n, seed):
    generator = torch.Generator().manual_seed(seed)
    return mean + torch.randn(n, len(deviations), generator=generator, dtype=torch.float64) * deviations


def test_frechet_distance_of_a_set_with_itself_is_zero():
    a = gaussian(torch.zeros(5), torch.arange(1.0, 6), 500, 0)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)


def test_frechet_distance_is_the_closed_form_on_gaussians():
    """Diagonal covariances: |Δμ|² + Σ(σ_a − σ_b)², up to the sampling error of 200,000 rows."""
    mean, a, b = (
        torch.tensor([1.0, -2, 0.5]).double(),
        torch.tensor([1.0, 2, 3]).double(),
        torch.tensor([2.0, 2, 1]).double(),
    )
    found = frechet_distance(gaussian(torch.zeros(3), a, 200_000, 0), gaussian(mean, b, 200_000, 1))
    assert found == pytest.approx(mean.square().sum().item() + (a - b).square().sum().item(), rel=0.02)


def test_frechet_distance_equals_scipys_matrix_root():
    import scipy.linalg

    a, b = gaussian(torch.zeros(6), torch.arange(1.0, 7), 300, 0), gaussian(torch.ones(6), torch.ones(6), 400, 1)
    covariances = [x.T.cov().numpy() for x in (a, b)]
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1]).real
    expected = (a.mean(0) - b.mean(0)).square().sum().item() + sum(c.trace() for c in covariances) - 2 * root.trace()
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)


def test_the_classifier_learns_the_digits_reproducibly():
    x, labels = load_images("digits").all()
    held_out = torch.arange(len(x)) % 5 == 0
    first = train_classifier(x[~held_out], labels[~held_out], steps=300)
    with torch.no_grad():
        accuracy = (first(x[held_out]).argmax(1) == labels[held_out]).float().mean().item()
        assert accuracy > 0.96
        assert first.features(x).shape == (1797, 64)
    second = train_classifier(x[~held_out], labels[~held_out], steps=20)
    third = train_classifier(x[~held_out], labels[~held_out], steps=20)
    for a, b in zip(second.parameters(), third.parameters(), strict=True):
        assert torch.equal(a, b)
