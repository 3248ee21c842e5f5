"""The signs of the watermark: the same everywhere, fair, and independent for each key and nonce."""

import hashlib
import hmac
import itertools

import pytest
import torch
from scipy import stats

from ctm.keystream import signs, signs_of_many

KEY = bytes(range(32))


def test_signs_are_the_bits_of_shake_of_hmac():
    seed = hmac.new(KEY, b"ctm keystream 1\x00" + b"nonce", hashlib.sha256).digest()
    stream = hashlib.shake_256(seed).digest(3)
    expected = [1 if stream[i // 8] >> (i % 8) & 1 else -1 for i in range(21)]
    assert signs(KEY, b"nonce", 21).tolist() == expected
    assert signs(KEY, b"nonce", 21).dtype == torch.int8


def test_signs_are_those_of_the_first_release():
    """Marks that were made stay findable: these bits never change."""
    assert "".join("+" if s > 0 else "-" for s in signs(KEY, b"0123456789abcdef", 32).tolist()) == FIRST
    assert torch.equal(signs(KEY, b"n", 9), signs(KEY, b"n", 784)[:9])


FIRST = "-++-+---+++--++-------+--+-++---"


def test_many_nonces_at_once_are_those_one_by_one():
    nonces = [bytes([i]) for i in range(5)]
    together = signs_of_many(KEY, nonces, 77)
    assert torch.equal(together, torch.stack([signs(KEY, nonce, 77) for nonce in nonces]))
    assert signs_of_many(KEY, [], 3).shape == (0, 3)


@pytest.mark.parametrize("other", ["keys", "nonces"])
def test_signs_are_fair_and_independent(other):
    """Sums of 256 signs over 4,000 keys or nonces, and products of neighbours, are Binomial(256, ½)."""
    numbers = [i.to_bytes(16, "big") for i in range(4000)]
    by_key = other == "keys"
    drawn = torch.stack([signs(n, b"n", 256) for n in numbers]) if by_key else signs_of_many(KEY, numbers, 256)
    for bits in (drawn, drawn * drawn.roll(1, 0), drawn[:, 1:] * drawn[:, :-1]):
        counts, size = (bits > 0).sum(1).numpy(), bits.shape[1]
        edges = [-1, *stats.binom.ppf([0.05 * i for i in range(1, 20)], size, 0.5), size]
        bins = list(itertools.pairwise(edges))
        expected = [4000 * (stats.binom.cdf(high, size, 0.5) - stats.binom.cdf(low, size, 0.5)) for low, high in bins]
        found = [((counts > low) & (counts <= high)).sum() for low, high in bins]
        assert stats.chisquare(found, expected).pvalue > 1e-3


@pytest.mark.parametrize(
    ("key", "nonce", "count", "message"),
    [
        (b"short", b"n", 8, "the key of the watermark must have at least 16 bytes, got 5"),
        ("a text that is secret", b"n", 8, "the key of the watermark must be bytes, got a value of type str"),
        (KEY, b"", 8, "a nonce must be 1 to 64 bytes, got 0 bytes"),
        (KEY, bytes(65), 8, "a nonce must be 1 to 64 bytes, got 65 bytes"),
        (KEY, 3, 8, r"a nonce must be 1 to 64 bytes, got 3 \(int\)"),
        (KEY, b"n", 0, "count must be a whole number of at least 1, got 0"),
    ],
)
def test_wrong_arguments_are_sentences(key, nonce, count, message):
    with pytest.raises(ValueError, match=message) as refused:
        signs(key, nonce, count)
    assert "secret" not in str(refused.value).replace("secrets.", "")
