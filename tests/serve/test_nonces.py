"""Nonces are the image's own: the same for the same (key, seed, i), another for any other."""

import itertools

from ctm.keystream import signs
from ctm.serve.nonces import LENGTH, nonces_of

SECRET = bytes(range(32))


def test_each_asked_image_has_its_own():
    asked = itertools.product((None, "a", "b", "key a", ""), (0, 1, 11, 1 << 63))
    found = [nonce for key, seed in asked for nonce in nonces_of(SECRET, key, seed, 12)]
    assert len(set(found)) == len(found) == 5 * 4 * 12
    assert {len(nonce) for nonce in found} == {LENGTH}


def test_the_same_image_has_the_same_nonce():
    assert nonces_of(SECRET, "a", 7, 3) == nonces_of(SECRET, "a", 7, 5)[:3]
    assert nonces_of(SECRET, "a", 7, 3) != nonces_of(SECRET[::-1], "a", 7, 3)


def test_signs_of_neighbouring_seeds_are_independent():
    """Of 64·200 signs the agreement of two seeds is binomial: within 4.5 standard errors of one half."""
    pairs = [nonces_of(SECRET, "a", seed, 1)[0] for seed in range(201)]
    made = [signs(SECRET, nonce, 64) for nonce in pairs]
    equal = sum(int((a == b).sum()) for a, b in itertools.pairwise(made))
    assert abs(equal - 6400) < 4.5 * (12800 / 4) ** 0.5
