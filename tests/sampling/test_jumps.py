import functools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ctm.noise import karras_grid
from ctm.sampling import Cancelled, consistency, gamma, gamma_plan, jump_to_many, two_level
from ctm.sampling.jumps import consistency_plan
from ctm.teachers import GaussianMixture

from ..conftest import mixture, slow
from ..energy import energy_distance

GRIDS = st.integers(1, 20).map(lambda n: karras_grid(n, dtype=torch.float64).tolist())


@given(grid=GRIDS, share=st.floats(0, 1), form=st.sampled_from(["paper", "code"]))
def test_a_plan_stays_on_its_grid(grid, share, form):
    """After each jump and its noise the level is the next of the grid: stop² + fresh² = t₊²; no noise after the last."""
    plan = list(gamma_plan(grid, share, form))
    assert len(plan) == len(grid) - 1
    for (t, stop, fresh), now, following in zip(plan, grid, grid[1:], strict=False):
        assert t == now
        assert grid[-1] * (1 - 1e-9) <= stop <= following * (1 + 1e-12)
        assert stop**2 + fresh**2 == pytest.approx(following**2, rel=1e-9)
    assert plan[-1][1:] == (grid[-1], 0.0)


@given(grid=GRIDS)
def test_gamma_zero_adds_no_noise_and_gamma_one_is_consistency(grid):
    for form in ("paper", "code"):
        assert [(stop, fresh) for _, stop, fresh in gamma_plan(grid, 0.0, form)] == [(level, 0.0) for level in grid[1:]]
        assert [stop for _, stop, _ in gamma_plan(grid, 1.0, form)] == [grid[-1]] * (len(grid) - 1)
    assert list(consistency_plan(grid)) == list(gamma_plan(grid, 1.0))


@pytest.mark.parametrize("form", ["paper", "code"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 1.0])
def test_variance_on_one_gaussian(form, share):
    """Under the exact jump x has variance t² + c² at each grid point, for all γ and both forms."""
    c, n = 0.5, 200_000
    teacher = GaussianMixture(torch.zeros(1, 1).double(), c, torch.ones(1))
    grid = karras_grid(5, dtype=torch.float64)
    x = (grid[0] ** 2 + c**2).sqrt() * torch.randn(n, 1, dtype=torch.float64)
    seen = []
    gamma(teacher, x, grid, gamma=share, form=form, callback=lambda step: seen.append(step.x.var().item()))
    for variance, level in zip(seen, grid[1:].tolist(), strict=True):
        assert variance == pytest.approx(level**2 + c**2, rel=5 * math.sqrt(2 / n))


@functools.cache
def largest_distance(dimensions: int, n: int) -> float:
    """Of fresh samples of the mixture to each other: mean and four standard deviations of twelve pairs."""
    teacher = mixture(dimensions)
    pairs = [(teacher.sample(n, 60 + 2 * i), teacher.sample(n, 61 + 2 * i)) for i in range(12)]
    null = torch.tensor([energy_distance(*pair) for pair in pairs])
    return (null.mean() + 4 * null.std()).item()


@pytest.mark.parametrize("dimensions", [2, slow(16)])
@pytest.mark.parametrize(
    ("share", "form"), [slow(0.0, "paper"), (0.3, "paper"), (0.7, "paper"), (0.7, "code"), slow(1.0, "paper")]
)
def test_the_exact_flow_reproduces_the_mixture_at_every_gamma(dimensions, share, form):
    """Energy distance to fresh samples of the mixture, against its spread between pairs of true samples. At γ = 0 and 1 both
    forms are one plan (above); more of them by the quick flow in test_limits.py."""
    teacher, n = mixture(dimensions), 600
    size = (n, dimensions)
    start = teacher.sample(n, seed=50) + 80 * torch.randn(size, dtype=torch.float64)
    made = gamma(teacher, start, karras_grid(4, dtype=torch.float64), gamma=share, form=form)
    truth = teacher.sample(n, seed=51)
    assert energy_distance(made, truth) < largest_distance(dimensions, n)
    shifted = made + 0.25 * teacher.sigma_data
    assert energy_distance(shifted, truth) > largest_distance(dimensions, n)  # the test can fail


def test_two_level_jumps_renoises_and_jumps():
    teacher = mixture(2)
    x = 80 * torch.randn(6, 2, dtype=torch.float64)
    calls = []

    class Watched:
        def jump(self, x, t, s, labels=None):
            calls.append((t[0].item(), s[0].item()))
            return teacher.jump(x, t, s, labels)

    noise = torch.randn(6, 2, dtype=torch.float64)
    grid = torch.tensor([80, 0.5, 2, 0.002], dtype=torch.float64)
    result = two_level(Watched(), x, grid, noise=lambda like: noise)
    assert calls == [(80.0, 0.5), (2.0, 0.002)]
    t, low, up, end = (level.expand(6) for level in grid)
    middle = teacher.jump(x, t, low) + math.sqrt(2**2 - 0.5**2) * noise
    torch.testing.assert_close(result, teacher.jump(middle, up, end), rtol=0, atol=1e-9)
    with pytest.raises(ValueError, match="two_level needs four levels"):
        two_level(teacher, x, grid[:3])


def test_consistency_is_gamma_one(small_ctm):
    x, noise, grid = 80 * torch.randn(4, 1, 8, 8), torch.randn(4, 1, 8, 8), karras_grid(3)
    with torch.no_grad():
        a = consistency(small_ctm, x, grid, noise=lambda like: noise)
        assert torch.equal(a, gamma(small_ctm, x, grid, gamma=1.0, noise=lambda like: noise))


def test_a_fan_of_jumps_is_the_jumps_one_by_one(small_ctm):
    """In one call, whatever the order of the levels, with one start or one for each sample."""
    teacher, levels = mixture(2), torch.tensor([0.002, 5.0, 80.0, 0.3], dtype=torch.float64)
    x = 80 * torch.randn(6, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    one_by_one = [teacher.jump(x, x.new_full((6,), 80.0), level.expand(6)) for level in levels]
    torch.testing.assert_close(jump_to_many(teacher, x, 80.0, levels), torch.stack(one_by_one), rtol=1e-9, atol=1e-9)

    calls, labels = [], torch.tensor([3, -1, 0])
    hook = small_ctm.network.register_forward_hook(lambda *_: calls.append(1))
    x, starts = torch.randn(3, *small_ctm.shape), torch.tensor([80.0, 2.0, 9.0])
    found = jump_to_many(small_ctm, x, starts, torch.tensor([1.0, 0.002]), condition=labels)
    assert found.shape == (2, 3, *small_ctm.shape)
    assert len(calls) == 1
    with torch.no_grad():
        second = small_ctm.jump(x, starts, torch.full((3,), 0.002), labels)
    hook.remove()
    torch.testing.assert_close(found[1], second, rtol=1e-4, atol=1e-4)
    in_pieces = jump_to_many(small_ctm, x, starts, torch.tensor([1.0, 0.002]), condition=labels, batch_size=4)
    torch.testing.assert_close(in_pieces, found, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("levels", "message"),
    [(torch.zeros(0), "at least one"), (torch.ones(2, 2), r"\(S,\)"), (torch.tensor([90.0]), "≤ s ≤ t")],
)
def test_a_fan_to_unfitting_levels_is_refused(small_ctm, levels, message):
    with pytest.raises(ValueError, match=message):
        jump_to_many(small_ctm, torch.zeros(1, *small_ctm.shape), 80.0, levels)


def test_noise_is_drawn_once_for_each_noisy_step(small_ctm):
    grid = karras_grid(4)
    for share, expected in ((0.0, 0), (0.5, 3), (1.0, 3)):
        draws = []
        gamma(
            small_ctm,
            torch.randn(2, 1, 8, 8),
            grid,
            gamma=share,
            noise=lambda x, d=draws: d.append(1) or torch.zeros_like(x),
        )
        assert len(draws) == expected


def test_callback_sees_steps_and_can_cancel():
    teacher, grid, seen = mixture(2), karras_grid(4, dtype=torch.float64), []

    def stop_at_second(step):
        seen.append(step)
        if step.index == 1:
            raise Cancelled

    with pytest.raises(Cancelled):
        gamma(teacher, 80 * torch.randn(2, 2).double(), grid, callback=stop_at_second)
    assert [step.index for step in seen] == [0, 1]
    assert seen[0].t == grid[0]
    assert seen[0].s == grid[1]
    assert seen[0].denoised is None


@pytest.mark.parametrize("value", [-0.1, 1.2, float("nan")])
def test_gamma_out_of_range_is_refused(value):
    with pytest.raises(
        ValueError,
        match=r"gamma must be (a finite number )?in \[0, 1\], got .*: 0 jumps deterministically, 1 is consistency",
    ):
        gamma(mixture(2), torch.zeros(1, 2), karras_grid(2), gamma=value)


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        (torch.tensor([80.0]), "at least two noise levels"),
        (torch.tensor([1.0, 2.0]), "that decrease strictly"),
        (torch.tensor([1.0, 0.0]), "jumps end at sigma_min, not at 0"),
        ([1.0, 0.5], "grid must be a tensor"),
    ],
)
def test_unfitting_grids_are_refused(grid, message):
    with pytest.raises(ValueError, match=message):
        gamma(mixture(2), torch.zeros(1, 2), grid)


def test_unknown_form_is_refused():
    with pytest.raises(ValueError, match="form must be one of paper, code, got 'other'"):
        gamma(mixture(2), torch.zeros(1, 2), karras_grid(2), form="other")
