"""The tail of the binomial against scipy and against whole numbers."""

import math
from fractions import Fraction

import pytest
from scipy import stats

from ctm.provenance import binomial_tail, least_matches


@pytest.mark.parametrize("bits", [1, 2, 7, 64, 196, 784, 3072, 9999, 10_001, 196_608])
def test_the_tail_is_scipy_s(bits):
    spread = math.sqrt(bits) / 2
    for matches in {0, 1, bits, *(round(bits / 2 + z * spread) for z in (-6, -1, -0.1, 0, 0.1, 1, 3, 8, 20))}:
        if 0 <= matches <= bits:
            expected = stats.binom.sf(matches - 1, bits, 0.5)
            assert binomial_tail(matches, bits) == pytest.approx(expected, rel=1e-8, abs=1e-300)


@pytest.mark.parametrize("bits", [5, 64, 500])
def test_the_tail_is_exact(bits):
    for matches in range(0, bits + 1, max(1, bits // 50)):
        exact = Fraction(sum(math.comb(bits, j) for j in range(matches, bits + 1)), 2**bits)
        assert binomial_tail(matches, bits) == pytest.approx(float(exact), rel=1e-12)


def test_the_ends():
    assert binomial_tail(0, 8) == 1
    assert binomial_tail(9, 8) == 0
    assert binomial_tail(8, 8) == 1 / 256
    assert binomial_tail(5000, 5000) == 0  # 2^-5000 is below the smallest float


@pytest.mark.parametrize(("bits", "threshold"), [(64, 1e-4), (196, 1e-10), (784, 0.5), (32, 1e-4), (8, 1.0)])
def test_the_fewest_matches(bits, threshold):
    least = least_matches(bits, threshold)
    assert binomial_tail(least, bits) <= threshold
    assert least == 0 or binomial_tail(least - 1, bits) > threshold


def test_too_few_bits_for_a_threshold():
    assert least_matches(8, 1e-4) == 9


def test_wrong_arguments_are_sentences():
    with pytest.raises(ValueError, match="matches must be a whole number of at least 0, got -1"):
        binomial_tail(-1, 8)
    with pytest.raises(ValueError, match=r"threshold must be in \(0, 1\], got 0"):
        least_matches(8, 0)
