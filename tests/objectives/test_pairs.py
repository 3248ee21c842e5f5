"""The ends of a jump have the stated distribution."""

import pytest
import torch

from ctm.objectives import KarrasPairs, LognormalPairs

N = 20_000


def drawn(pairs, low: float = 0.002, high: float = 80.0) -> tuple[torch.Tensor, torch.Tensor]:
    return pairs(N, low, high, torch.Generator().manual_seed(0))


@pytest.mark.parametrize("to_end", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("pairs", [KarrasPairs, LognormalPairs])
def test_s_is_below_t_within_the_range_and_at_the_end_as_often_as_told(pairs, to_end):
    """Four standard errors; a log-normal level is below 0.002 once in 10^5 draws."""
    t, s = drawn(pairs(to_end=to_end), high=20.0)
    assert bool(((s >= 0.002) & (s <= t) & (t <= 20.0)).all())
    share = (s == 0.002).double().mean().item()
    assert abs(share - to_end) < 4 * (max(to_end * (1 - to_end), 1e-4) / N) ** 0.5
    assert pairs(to_end=to_end).only_to_end == (to_end == 1)


def test_karras_pairs_are_uniform_in_the_coordinate():
    """ξ_t is uniform, and so is the part of the way from ξ_t to 1 at which ξ_s lies: means ½ within four standard errors."""
    t, s = drawn(KarrasPairs())
    top, bottom = 80.0 ** (1 / 7), 0.002 ** (1 / 7)
    start, end = ((top - level ** (1 / 7)) / (top - bottom) for level in (t, s))
    for share in (start, (end - start) / (1 - start)):
        assert share.mean().item() == pytest.approx(0.5, abs=4 * (1 / 12 / N) ** 0.5)
        assert share.std().item() == pytest.approx((1 / 12) ** 0.5, rel=0.02)


def test_lognormal_pairs_are_the_larger_and_the_smaller_of_two_draws():
    """Of two standard normal numbers the larger has mean 1/√π, the smaller −1/√π (David & Nagaraja, Order Statistics)."""
    t, s = drawn(LognormalPairs(mean=-0.4, std=0.5))
    for level, mean in ((t, -0.4 + 0.5 / torch.pi**0.5), (s, -0.4 - 0.5 / torch.pi**0.5)):
        assert level.log().mean().item() == pytest.approx(mean, abs=4 * 0.5 / N**0.5)


@pytest.mark.parametrize(
    ("pairs", "settings", "message"),
    [
        (KarrasPairs, {"rho": 0.5}, "rho must be at least 1 and finite, got 0.5"),
        (KarrasPairs, {"to_end": 1.5}, r"to_end is a share of jumps, in \[0, 1\], got 1.5"),
        (LognormalPairs, {"to_end": -0.1}, r"to_end is a share of jumps, in \[0, 1\], got -0.1"),
        (LognormalPairs, {"std": 0.0}, "mean must be finite and std above 0 and finite, got -1.2 and 0.0"),
    ],
)
def test_settings_that_cannot_be_are_refused(pairs, settings, message):
    with pytest.raises(ValueError, match=message):
        pairs(**settings)
