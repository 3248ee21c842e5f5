import math

import numpy as np
import pytest
import torch
from prdc import compute_prdc

from ctm.evaluation.kernels import cmmd, kid
from ctm.evaluation.neighbours import Training, nearest, precision_recall, radii
from ctm.evaluation.number import Number, mean_with_error
from ctm.evaluation.scores import ClassSums, ProbabilitySums, psnr


def rows(n, features=8, seed=0, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    return shift + torch.randn(n, features, generator=generator, dtype=torch.float64)


class AsIs(torch.nn.Module):
    num_features = 8

    def forward(self, x):
        return x


def unbiased_mmd(a, b, kernel):
    """By its definition, pair for pair."""
    a, b = a.numpy(), b.numpy()
    among = [np.mean([kernel(x, y) for i, x in enumerate(s) for j, y in enumerate(s) if i != j]) for s in (a, b)]
    return sum(among) - 2 * np.mean([kernel(x, y) for x in a for y in b])


def test_kid_is_its_definition_and_torchmetrics():
    a, b = rows(40, shift=0.3), rows(40, seed=1)
    kernel = lambda x, y: (x @ y / 8 + 1) ** 3  # noqa: E731
    parts = [unbiased_mmd(a[i : i + 10], b[i : i + 10], kernel) for i in range(0, 40, 10)]
    found = kid(a, b)
    assert found.value == pytest.approx(np.mean(parts), rel=1e-9)
    assert found.error == pytest.approx(np.std(parts, ddof=1) / 2, rel=1e-9)
    values = []
    for start in range(0, 40, 10):
        from torchmetrics.image.kid import KernelInceptionDistance

        metric = KernelInceptionDistance(feature=AsIs(), subsets=1, subset_size=10).set_dtype(torch.float64)
        metric.update(a[start : start + 10], real=True)
        metric.update(b[start : start + 10], real=False)
        values.append(float(metric.compute()[0]))
    assert found.value == pytest.approx(np.mean(values), rel=1e-6)


def test_kids_error_bar_is_its_spread():
    """It is unbiased: over sets of one distribution its mean is 0, and its error bar the spread."""
    found = [kid(rows(200, seed=2 * i), rows(200, seed=2 * i + 1)) for i in range(80)]
    values = torch.tensor([n.value for n in found])
    assert abs(float(values.mean())) < 3 * float(values.std()) / 80**0.5
    assert np.sqrt(np.mean([n.error**2 for n in found])) == pytest.approx(float(values.std()), rel=0.3)


def test_cmmd_is_its_definition():
    a, b = rows(30, shift=0.5), rows(25, seed=1)
    unit_a, unit_b = (x / x.norm(dim=1, keepdim=True) for x in (a, b))
    kernel = lambda x, y: torch.exp(-(torch.cdist(x, y) ** 2) / 200)  # noqa: E731
    expected = kernel(unit_a, unit_a).mean() + kernel(unit_b, unit_b).mean() - 2 * kernel(unit_a, unit_b).mean()
    assert cmmd(a, b).value == pytest.approx(1000 * float(expected), rel=1e-6)
    assert cmmd(a, a).value == pytest.approx(0, abs=1e-9)
    repeated = torch.tensor([cmmd(rows(400, seed=i, shift=0.3), rows(400, seed=999)).value for i in range(40)])
    assert cmmd(rows(400, seed=50, shift=0.3), rows(400, seed=999)).error == pytest.approx(
        float(repeated.std()), rel=0.4
    )


@pytest.mark.parametrize(("real", "fake", "shift"), [(300, 200, 0.0), (1100, 1500, 0.7), (50, 60, 3.0)])
def test_precision_and_its_company_equal_prdc(real, fake, shift):
    a, b = rows(real), rows(fake, seed=1, shift=shift)
    expected = compute_prdc(a.numpy(), b.numpy(), nearest_k=5)
    found = precision_recall(a, b)
    assert {name: number.value for name, number in found.items()} == pytest.approx(expected, rel=1e-6)
    cached = precision_recall(a, b, real_radii=radii(a))
    assert cached == found


def test_precision_falls_with_noise_and_recall_with_lost_modes():
    centres = 6 * torch.eye(8, dtype=torch.float64)

    def modes(n, seed, count=8):
        generator = torch.Generator().manual_seed(seed)
        return centres[torch.randint(count, (n,), generator=generator)] + 0.5 * rows(n, seed=seed)

    real, good = modes(600, 0), modes(600, 1)
    noisy = good.clone()
    noisy[::2] += 3 * rows(300, seed=5)
    dropped = modes(600, 2, count=4)
    clean, noise, lost = (precision_recall(real, x) for x in (good, noisy, dropped))
    assert noise["precision"].value < 0.7 < 0.9 < clean["precision"].value
    assert noise["recall"].value > clean["recall"].value - 0.03
    assert lost["precision"].value > clean["precision"].value - 0.03
    assert lost["recall"].value < 0.6 < 0.9 < clean["recall"].value
    assert lost["coverage"].value < 0.6
    assert noise["density"].value < 0.8 * clean["density"].value


def test_nearest_is_found_in_every_part():
    table, queries = rows(12_345, 4), rows(50, 4, seed=1)
    distance, number = nearest(queries, table)
    full = torch.cdist(queries, table)
    assert torch.equal(number, full.argmin(dim=1))
    torch.testing.assert_close(distance, full.min(dim=1).values, rtol=1e-9, atol=1e-9)
    assert torch.equal(nearest(table[:9], table)[1], torch.arange(9))
    other = nearest(table[:9], table, without=torch.arange(9))[1]
    assert not bool((other == torch.arange(9)).any())


def test_memorisation_tells_copies_from_fresh_draws():
    train, fresh = rows(2000), rows(400, seed=1)
    honest = Training(train).memorisation(fresh)
    assert honest.share.value == pytest.approx(
        honest.expected.value, abs=4 * (honest.share.error + honest.expected.error)
    )
    copies = train[torch.randperm(2000)[:400]] + 0.01 * rows(400, seed=2)
    assert Training(train).memorisation(copies).share.value == 1
    half = torch.cat([copies[:200], fresh[:200]])
    assert Training(train).memorisation(half).share.value > honest.expected.value + 0.2
    exact = Training(train).memorisation(train[:7])
    assert torch.equal(exact.neighbours, torch.arange(7))
    assert float(exact.distances.max()) < 1e-6


def test_inception_score_equals_torchmetrics_and_its_bounds():
    logits = rows(500, 10)
    from torchmetrics.image.inception import InceptionScore

    metric = InceptionScore(feature=AsIs(), splits=1).set_dtype(torch.float64)
    metric.update(logits)
    sums = ProbabilitySums(10, 8)
    for start in range(0, 500, 90):
        part = logits[start : start + 90]
        sums.add(part, torch.arange(start, start + len(part)), None)
    assert sums.inception_score().value == pytest.approx(float(metric.compute()[0]), rel=1e-6)
    spread = torch.tensor([_score(rows(500, 10, seed=i)).value for i in range(40)]).std()
    assert sums.inception_score().error == pytest.approx(float(spread), rel=0.6)
    sure = 1000 * torch.eye(10)[torch.arange(500) % 10]
    assert _score(sure).value == pytest.approx(10, rel=1e-6)
    assert _score(sure[:1].expand(500, 10)).value == pytest.approx(1, rel=1e-6)


def _score(logits):
    sums = ProbabilitySums(logits.shape[1], 8)
    sums.add(logits, torch.arange(len(logits)), None)
    return sums.inception_score()


def test_accuracy_counts_the_right_ones():
    sums = ProbabilitySums(3, 8)
    sums.add(torch.eye(3)[[0, 1, 2, 2]], torch.arange(4), torch.tensor([0, 1, 2, 0]))
    assert sums.accuracy().value == 0.75
    assert sums.accuracy().error == pytest.approx(math.sqrt(0.75 * 0.25 / 4))


def test_diversity_is_the_ratio_of_pairwise_distances():
    a, labels = rows(60, 5), torch.arange(60) % 3
    sums = ClassSums(4, 5)
    sums.add(a[:20], labels[:20])
    sums.add(a[20:], labels[20:])
    pairs = [torch.cdist(a[labels == c], a[labels == c]).square().sum() / (20 * 19) for c in range(3)]
    torch.testing.assert_close(sums.spread()[:3], torch.stack(pairs))
    assert sums.spread()[3].isnan()
    narrow = ClassSums(4, 5)
    narrow.add(torch.cat([0.5 * a, torch.ones(1, 5)]), torch.cat([labels, torch.tensor([-1])]))
    assert narrow.diversity(sums).value == pytest.approx(0.25)
    with pytest.raises(ValueError, match="needs a class with two samples"):
        ClassSums(4, 5).diversity(sums)


def test_psnr():
    assert psnr(torch.tensor([4.0, 0.04, 0.0]).double()).tolist() == pytest.approx([0, 20, math.inf])


def test_numbers_are_shown_to_their_error():
    assert str(Number(1.23456, 0.0213)) == "1.235 ± 0.021"
    assert str(Number(1234.5, 12.0)) == "1234 ± 12"
    assert str(Number(0.123456)) == "0.1235"
    assert mean_with_error(torch.tensor([1.0, 3.0])) == Number(2.0, 1.0)


def test_too_few_rows_are_sentences():
    with pytest.raises(ValueError, match="more than 5 rows on both sides, got 5, 90"):
        precision_recall(rows(5), rows(90))
    with pytest.raises(ValueError, match="at least two rows on both sides"):
        kid(rows(1), rows(5))
    with pytest.raises(ValueError, match="at least four training images"):
        Training(rows(3))


def test_products_made_once_give_the_same():
    fake, real = rows(60, 20), rows(50, 20, seed=1) + 0.3
    products = fake.double() @ fake.double().T, fake.double() @ real.double().T
    for name, number in precision_recall(real, fake, products=products).items():
        assert number == precision_recall(real, fake)[name], name
    assert cmmd(fake, real, products=products).value == pytest.approx(cmmd(fake, real).value, rel=1e-9)
    assert cmmd(fake, real, products=products).error == pytest.approx(cmmd(fake, real).error, rel=1e-9)
