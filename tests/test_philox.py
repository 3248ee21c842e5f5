import math

import pytest
import torch

from ctm.philox import normals, philox4x32

# The generator's own known answers (Random123's kat_vectors): counter, key, output.
KNOWN = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def _words(text: str) -> torch.Tensor:
    return torch.tensor([int(word, 16) for word in text.split()])


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN)
def test_the_generators_own_known_answers(counter, key, answer):
    assert torch.equal(philox4x32(_words(counter), _words(key)), _words(answer))


def test_many_counters_at_once_are_as_each_alone():
    counter = torch.randint(2**32, (4, 3, 5), generator=torch.Generator().manual_seed(0))
    key = torch.randint(2**32, (2, 3, 1), generator=torch.Generator().manual_seed(1))
    together = philox4x32(counter, key)
    for i in range(3):
        for j in range(5):
            assert torch.equal(together[:, i, j], philox4x32(counter[:, i, j], key[:, i, 0]))
    assert together.min() >= 0
    assert together.max() < 2**32


def test_normals_follow_box_and_muller_in_double_precision():
    """Against r·cos θ in float64 at the same integers, up to the eighth of a turn: all corners and a million of the inside."""
    edges = torch.tensor([0, 1, 2**24, 2**30 - 1, 2**30, 2**31, 3 * 2**30, 2**32 - 1])
    a = torch.cat([edges.repeat(8), torch.randint(2**32, (10**6,), generator=torch.Generator().manual_seed(0))])
    b = torch.cat(
        [edges.repeat_interleave(8), torch.randint(2**32, (10**6,), generator=torch.Generator().manual_seed(1))]
    )
    found = normals(torch.stack([a, b])).double()
    radius = (
        -2 * ((a + 1).float().double() / 2**32).log()
    ).sqrt()  # (a + 1)/2^32 is rounded to float32, on each device alike
    angle = 2 * math.pi * (b.double() + 0.5) / 2**32 - math.pi / 4
    truth = torch.stack([radius * angle.cos(), radius * angle.sin()])
    assert (found - truth).abs().max() < 1e-6
    assert found.isfinite().all()


def test_normals_are_standard_normal():
    """10⁶ numbers: Kolmogorov's distance stays under its 99.9 % point, 1.95/√n; both numbers of a pair are uncorrelated."""
    counter = torch.zeros(4, 250_000, dtype=torch.int64)
    counter[0] = torch.arange(250_000)
    drawn = normals(philox4x32(counter, torch.tensor([[1], [2]]))).double()
    values = drawn.flatten().sort().values
    share = torch.special.ndtr(values)
    rank = torch.arange(1, len(values) + 1, dtype=torch.float64) / len(values)
    assert (share - rank).abs().max() < 1.95 / math.sqrt(len(values))
    correlations = torch.corrcoef(drawn)[~torch.eye(4, dtype=torch.bool)]
    assert correlations.abs().max() < 4.5 / math.sqrt(250_000)
