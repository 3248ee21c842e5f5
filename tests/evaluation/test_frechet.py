import math

import numpy as np
import pytest
import scipy.linalg
import torch

from ctm.evaluation.frechet import frechet, frechet_distance, frechet_numbers, too_few
from ctm.evaluation.moments import BlockMoments, Gaussian


def gaussian(mean, deviations, n, seed):
    generator = torch.Generator().manual_seed(seed)
    return mean + torch.randn(n, len(deviations), generator=generator, dtype=torch.float64) * deviations


def correlated(n, features, seed):
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(features, features, generator=generator, dtype=torch.float64)
    return torch.randn(n, features, generator=generator, dtype=torch.float64) @ mixing + mixing[0]


def moments(rows):
    sums = BlockMoments(rows.shape[1])
    for start in range(0, len(rows), 100):
        part = rows[start : start + 100]
        sums.add(part, torch.arange(start, start + len(part)))
    return sums


def by_scipy(a, b):
    means, covariances = zip(*((x.mean(0).numpy(), np.cov(x.numpy(), rowvar=False)) for x in (a, b)), strict=True)
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1]).real
    return ((means[0] - means[1]) ** 2).sum() + sum(c.trace() for c in covariances) - 2 * root.trace()


class AsIs(torch.nn.Module):
    num_features = 24

    def forward(self, x):
        return x


@pytest.mark.parametrize("rows", [400, 25])
def test_equals_scipys_and_torchmetrics(rows):
    a, b = correlated(rows, 24, 0), correlated(rows + 50, 24, 1)
    assert frechet_distance(a, b) == pytest.approx(by_scipy(a, b), rel=1e-6)
    from torchmetrics.image.fid import FrechetInceptionDistance

    metric = FrechetInceptionDistance(feature=AsIs()).set_dtype(torch.float64)
    metric.update(a, real=True)
    metric.update(b, real=False)
    assert frechet_distance(a, b) == pytest.approx(float(metric.compute()), rel=1e-6)
    assert frechet(moments(a).gaussian(), moments(b).gaussian()) == pytest.approx(frechet_distance(a, b), rel=1e-9)


@pytest.mark.parametrize("rows", [500, 12])
def test_of_a_set_with_itself_is_zero(rows):
    """Also where there are fewer rows than features, so that the covariance has no inverse."""
    a = correlated(rows, 24, 0)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6 * float(a.T.cov().trace()))


def test_is_the_closed_form_on_gaussians():
    """|Δμ|² + Σ(σ_a − σ_b)² exactly from the moments, and from 200,000 rows up to their sampling error."""
    mean, a, b = torch.tensor([1.0, -2, 0.5]), torch.tensor([1.0, 2, 3]), torch.tensor([2.0, 2, 1])
    mean, a, b = mean.double(), a.double(), b.double()
    rotation = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64)).Q
    first = Gaussian(torch.zeros(3).double(), rotation @ torch.diag(a**2) @ rotation.T)
    second = Gaussian(mean, rotation @ torch.diag(b**2) @ rotation.T)
    expected = float(mean.square().sum() + (a - b).square().sum())
    assert frechet(first, second) == pytest.approx(expected, rel=1e-12)
    found = frechet_distance(gaussian(torch.zeros(3), a, 200_000, 0), gaussian(mean, b, 200_000, 1))
    assert found == pytest.approx(expected, rel=0.02)


def test_covariance_of_commuting_and_other_matrices():
    """tr(AB)^½ of two matrices that do not commute, by hand: A = diag(4, 1), B = [[2, 1], [1, 2]] has tr AB = 10 and
    det AB = 12, so tr(AB)^½ = √(10 + 2√12)."""
    zero = torch.zeros(2).double()
    a = Gaussian(zero, torch.tensor([[4.0, 0], [0, 1]]).double())
    b = Gaussian(zero, torch.tensor([[2.0, 1], [1, 2]]).double())
    assert frechet(a, b) == pytest.approx(5 + 4 - 2 * math.sqrt(10 + 2 * math.sqrt(12)), rel=1e-12)


def test_error_bar_and_limit_against_many_repetitions():
    """On Gaussians where the truth is known: the error bar is the spread over repetitions, FID∞ has nearly lost the bias."""
    features = 16
    reference = Gaussian(torch.zeros(features).double(), torch.eye(features).double())
    deviations = torch.linspace(0.8, 1.2, features).double()
    truth = float((deviations - 1).square().sum()) + 0.01 * features
    runs = [frechet_numbers(moments(gaussian(0.1, deviations, 320, seed)), reference) for seed in range(60)]
    values, limits = (torch.tensor([run[i].value for run in runs]) for i in (0, 1))
    errors = torch.tensor([run[0].error for run in runs])
    assert float(errors.mean()) == pytest.approx(float(values.std()), rel=0.3)
    assert float(limits.std()) < 1.5 * float(values.std())
    bias, left = float(values.mean()) - truth, float(limits.mean()) - truth
    assert bias > 0.15
    assert abs(left) < 0.15 * bias


def test_no_limit_from_few_samples():
    reference = Gaussian(torch.zeros(24).double(), torch.eye(24).double())
    value, limit = frechet_numbers(moments(correlated(40, 24, 0)), reference)
    assert value.error is not None
    assert limit is None
    assert frechet_numbers(moments(correlated(95, 24, 0)), reference)[1] is None
    assert frechet_numbers(moments(correlated(96, 24, 0)), reference)[1] is not None
    assert frechet_numbers(moments(correlated(96, 24, 0)), reference, real=25)[1] is not None
    assert frechet_numbers(moments(correlated(96, 24, 0)), reference, real=24)[1] is None


def test_case_23_the_limit_is_near_the_truth_wherever_it_is_told():
    """Samples of the reference's own distribution, at distance 0: twice as many samples as features gave −28 % of the bias."""
    features = 32
    reference = Gaussian(torch.zeros(features).double(), torch.eye(features).double())
    runs = [
        frechet_numbers(moments(gaussian(0.0, torch.ones(features).double(), 128, seed)), reference)
        for seed in range(40)
    ]
    value, limit = (torch.tensor([run[i].value for run in runs]).mean() for i in (0, 1))
    assert abs(float(limit)) < 0.1 * float(value)


@pytest.mark.parametrize(
    ("samples", "real", "words"),
    [
        (
            100,
            5000,
            ["100 samples are no more than the 128 features: their covariance is singular", "Fréchet∞ is left out"],
        ),
        (600, 128, ["128 data images are no more than the 128 features", "Fréchet∞ is left out"]),
        (511, 5000, ["Fréchet∞ is left out: it needs at least 4 samples for each of the 128 features"]),
        (512, 129, []),
        (512, 0, []),
    ],
)
def test_case_23_too_few_samples_or_images_are_said(samples, real, words):
    found = too_few(samples, real, 128)
    assert len(found) == len(words)
    assert all(start in sentence for start, sentence in zip(words, found, strict=True))


def test_sums_of_parts_are_the_sums_of_the_whole():
    rows = correlated(333, 5, 0)
    whole, first, second = moments(rows), BlockMoments(5), BlockMoments(5)
    order = torch.randperm(333)
    first.add(rows[order[:100]], order[:100])
    second.add(rows[order[100:]], order[100:])
    first.merge(second.tensors())
    torch.testing.assert_close(first.outer, whole.outer, rtol=1e-12, atol=1e-12)
    for name, tensor in whole.tensors().items():
        torch.testing.assert_close(first.tensors()[name], tensor, rtol=1e-12, atol=1e-12)


def test_mistakes_are_sentences():
    with pytest.raises(ValueError, match="at least two rows"):
        frechet_distance(torch.zeros(1, 3), torch.zeros(5, 3))
    with pytest.raises(ValueError, match="3 and 4 features: use one feature network"):
        frechet_distance(torch.zeros(5, 3), torch.zeros(5, 4))
