import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ctm.noise import (
    continuous_times,
    draw_solver_steps,
    edm_weight,
    grid_times,
    half_lognormal,
    index_grid,
    karras_grid,
    karras_level,
    log_linear_grid,
    lognormal,
)


@given(
    steps=st.integers(1, 200),
    sigma_min=st.floats(1e-4, 0.5),
    ratio=st.floats(1.5, 1e5),
    rho=st.floats(1, 20),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_grid_has_exact_ends_and_decreases(steps, sigma_min, ratio, rho, dtype):
    sigma_max = sigma_min * ratio
    grid = karras_grid(steps, sigma_min, sigma_max, rho, dtype=dtype)
    assert grid.shape == (steps + 1,)
    assert grid.dtype == dtype
    assert grid[0] == torch.tensor(sigma_max, dtype=dtype)
    assert grid[-1] == torch.tensor(sigma_min, dtype=dtype)
    if steps < 50 and ratio > 2:
        assert bool((grid[1:] < grid[:-1]).all())


def test_grid_is_even_in_the_karras_coordinate():
    grid = karras_grid(17, dtype=torch.float64)
    coordinate = grid ** (1 / 7)
    gaps = coordinate.diff()
    torch.testing.assert_close(gaps, gaps.mean().expand(17), rtol=1e-12, atol=1e-13)


def test_two_steps_are_the_papers():
    """The paper's two-step grid: 80 → 2.515 → 0.002."""
    assert karras_grid(2)[1].item() == pytest.approx(2.515, abs=5e-4)


def test_default_dtype_is_torchs():
    assert karras_grid(3).dtype == torch.get_default_dtype()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 0}, "steps must be a whole number of at least 1, got 0"),
        ({"steps": 2.5}, "steps must be a whole number"),
        ({"steps": 2, "sigma_min": 0.0}, "0 < sigma_min < sigma_max"),
        ({"steps": 2, "sigma_min": 3.0, "sigma_max": 2.0}, "0 < sigma_min < sigma_max"),
        ({"steps": 2, "rho": 0.5}, "rho must be at least 1"),
        (
            {"steps": 2, "dtype": torch.int64},
            r"dtype must be a floating-point type such as torch.float32, got torch.int64",
        ),
        ({"steps": 2, "dtype": torch.float8_e4m3fn}, r"got torch.float8_e4m3fn"),
        ({"steps": 2, "dtype": "float32"}, r"got 'float32' \(str\)"),
    ],
)
def test_grid_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        karras_grid(**arguments)


@pytest.mark.parametrize(
    "grid",
    [
        lambda dtype: log_linear_grid(2, dtype=dtype),
        lambda dtype: index_grid(2, 10, dtype=dtype),
        lambda dtype: continuous_times(3, 1, 0.5, dtype=dtype),
    ],
    ids=["log", "index", "times"],
)
def test_no_grid_is_rounded_to_whole_numbers(grid):
    """The lowest levels would be 0, where no model can be asked."""
    grid(torch.float64)
    with pytest.raises(ValueError, match="dtype must be a floating-point type"):
        grid(torch.int64)


def test_edm_weight_makes_the_network_target_unit_variance():
    """c_out²·w = 1 (EDM, table 1)."""
    sigma = karras_grid(10, dtype=torch.float64)
    c_out = sigma * 0.5 / (sigma**2 + 0.25).sqrt()
    torch.testing.assert_close(c_out**2 * edm_weight(sigma), torch.ones_like(sigma))


@given(n=st.integers(1, 40), points=st.integers(2, 40), data=st.data())
def test_discrete_times_are_ordered_and_on_the_grid(n, points, data):
    k = data.draw(st.integers(1, points - 1))
    grid = karras_grid(points - 1, dtype=torch.float64)
    times = grid_times(n, grid, k, generator=torch.Generator().manual_seed(data.draw(st.integers(0, 1000))))
    assert times.path.shape == (k + 1, n)
    assert bool((times.path[1:] < times.path[:-1]).all())
    assert bool((times.s <= times.u).all())
    assert bool(torch.isin(times.s, grid).all())
    assert bool(torch.isin(times.path, grid).all())


def test_discrete_times_are_uniform():
    """t's index uniform on 0 … N−1−k; given it, s's index uniform on u … N−1: every pair has its own probability."""
    points, k, n = 6, 2, 200_000
    grid = torch.arange(points, 0, -1).double()
    times = grid_times(n, grid, k, generator=torch.Generator().manual_seed(0))
    t_index, s_index = (points - times.t).long(), (points - times.s).long()
    counts = torch.bincount(t_index * points + s_index, minlength=points * points).reshape(points, points).double() / n
    for i in range(points - k):
        for j in range(i + k, points):
            probability = 1 / (points - k) / (points - i - k)
            deviation = math.sqrt(probability * (1 - probability) / n)
            assert counts[i, j].item() == pytest.approx(probability, abs=5 * deviation)
    assert counts.sum().item() == pytest.approx(1)


def test_global_matching_ends_where_the_solver_ends():
    times = grid_times(100, karras_grid(17), 5, s_from_u=True, generator=torch.Generator().manual_seed(0))
    assert torch.equal(times.s, times.u)


def test_too_many_solver_steps_are_refused():
    with pytest.raises(ValueError, match="solver_steps must be in 1 … 17 on a grid of 18 levels, got 18"):
        grid_times(4, karras_grid(17), 18)


@pytest.mark.parametrize("power", [0.0, 1.0, 2.0])
def test_solver_steps_follow_their_law(power):
    generator, n, largest = torch.Generator().manual_seed(0), 4000, 5
    drawn = torch.tensor([draw_solver_steps(largest, power, generator=generator) for _ in range(n)])
    weights = torch.arange(1, largest + 1).double() ** power
    probability = weights / weights.sum()
    share = torch.bincount(drawn, minlength=largest + 1)[1:].double() / n
    assert bool(((share - probability).abs() < 5 * (probability * (1 - probability) / n).sqrt()).all())


@given(span=st.floats(0.01, 1.0), steps=st.integers(1, 20), seed=st.integers(0, 100), same=st.booleans())
def test_continuous_times_are_ordered(span, steps, seed, same):
    generator = torch.Generator().manual_seed(seed)
    times = continuous_times(50, steps, span, dtype=torch.float64, s_from_u=same, generator=generator)
    assert times.path.shape == (steps + 1, 50)
    assert bool((times.path[1:] < times.path[:-1]).all())
    assert bool((times.s <= times.u).all())
    assert bool((times.s >= 0.002).all())
    assert bool((times.t <= 80).all())
    walked = times.t ** (1 / 7) - times.u ** (1 / 7)
    torch.testing.assert_close(
        walked, torch.full_like(walked, span * (80 ** (1 / 7) - 0.002 ** (1 / 7))), rtol=1e-9, atol=0
    )


def test_lognormal_levels():
    log = lognormal(100_000, generator=torch.Generator().manual_seed(0)).log()
    assert log.mean().item() == pytest.approx(-1.2, abs=0.02)
    assert log.std().item() == pytest.approx(1.2, abs=0.02)


def test_half_lognormal_levels():
    sigma = half_lognormal(100_001, generator=torch.Generator().manual_seed(0)).double()
    first, rest = sigma[:50_000].log(), sigma[50_000:]
    assert len(rest) == 50_001
    assert first.mean().item() == pytest.approx(-1.2, abs=0.03)
    edge = karras_level(torch.tensor(0.7, dtype=torch.float64)).item()
    assert rest.min().item() == pytest.approx(edge, rel=1e-3)
    coordinate = (80 ** (1 / 7) - rest ** (1 / 7)) / (80 ** (1 / 7) - 0.002 ** (1 / 7))
    assert coordinate.mean().item() == pytest.approx(0.35, abs=0.005)


def test_the_same_generator_gives_the_same_times():
    pair = [grid_times(16, karras_grid(17), 3, generator=torch.Generator().manual_seed(5)) for _ in range(2)]
    assert torch.equal(pair[0].path, pair[1].path)
    assert torch.equal(pair[0].s, pair[1].s)


def test_log_linear_levels_have_one_ratio_and_are_karras_in_the_limit():
    levels = log_linear_grid(9, 0.01, 10.0, dtype=torch.float64)
    ratios = levels[1:] / levels[:-1]
    torch.testing.assert_close(ratios, torch.full((9,), 1e-3 ** (1 / 9), dtype=torch.float64))
    assert (levels[0], levels[-1]) == (10.0, 0.01)
    torch.testing.assert_close(levels, karras_grid(9, 0.01, 10.0, 1e6, dtype=torch.float64), rtol=1e-4, atol=0)


def test_index_levels_are_levels_of_the_fine_grid():
    """sony/ctm's indices 0, 22, 39 of 40 points are near the even 0, 20, 39."""
    fine = karras_grid(39, dtype=torch.float64)
    assert torch.equal(index_grid(2, 40, dtype=torch.float64), fine[[0, 20, 39]])
    assert torch.equal(index_grid(39, 40, dtype=torch.float64), fine)
    with pytest.raises(ValueError, match="steps must be a whole number of at least 1, got 0"):
        index_grid(0, 40)
    with pytest.raises(ValueError, match=r"an index grid takes 1 … points − 1 steps"):
        index_grid(40, 40)
    with pytest.raises(ValueError, match="0 < sigma_min < sigma_max"):
        log_linear_grid(3, 2.0, 1.0)
