"""The tail of a fair coin: how probable so many matches are by chance."""

from __future__ import annotations

import math

from ctm.arguments import as_count, as_number

__all__ = ["binomial_tail", "least_matches"]

_EXACT = 10_000  # tosses up to which the first term is computed in whole numbers


def binomial_tail(matches: int, bits: int) -> float:
    """P(X ≥ matches) for X ~ Binomial(bits, ½), to 1e-12 of itself (1e-8 above 10,000 bits); 0 where it is below the smallest
    float. Raises ValueError for numbers that are not whole or are negative."""
    matches, bits = as_count(matches, "matches", 0), as_count(bits, "bits")
    if matches == 0:
        return 1.0
    if matches > bits:
        return 0.0
    if 2 * matches <= bits:
        return 1.0 - binomial_tail(bits - matches + 1, bits)
    total, ratio = 1.0, 1.0  # of the terms to the first: C(n, j + 1)/C(n, j) = (n − j)/(j + 1)
    for j in range(matches, bits):
        ratio *= (bits - j) / (j + 1)
        total += ratio
        if ratio < 1e-18 * total:
            break
    return _term(matches, bits) * total


def _term(matches: int, bits: int) -> float:
    """C(bits, matches)/2^bits."""
    if bits <= _EXACT:
        return math.comb(bits, matches) / 2**bits
    inner = math.lgamma(matches + 1) + math.lgamma(bits - matches + 1)
    return math.exp(math.lgamma(bits + 1) - inner - bits * math.log(2))


def least_matches(bits: int, threshold: float) -> int:
    """The fewest matches whose tail is at most `threshold`, in (0, 1]; bits + 1 where even all matching is more probable."""
    threshold = as_number(threshold, "threshold", 0, 1, above=True)
    low, high = 0, as_count(bits, "bits") + 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if binomial_tail(middle, bits) <= threshold else (middle + 1, high)
    return low
