import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctm.training import Progressive


@given(step=st.integers(0, 999))
def test_progressive_grids_grow_from_start_to_end(step):
    schedule = Progressive(2, 150)
    now, later = (schedule(k, 1000)[1] - 1 for k in (step, step + 1))
    assert 1 <= now <= later <= 150
    assert schedule(1000, 1000)[1] == 151


def test_the_decay_rises_with_the_grid():
    """start_decay itself on a grid of `start` intervals, its square on one of half as many."""
    schedule, steps = Progressive(2, 20, start_decay=0.9), 1000
    by_intervals = {points - 1: decay for decay, points in (schedule(step, steps) for step in range(steps + 1))}
    assert list(by_intervals) == list(range(1, 21))
    assert by_intervals[1] == pytest.approx(0.9**2)
    assert by_intervals[2] == pytest.approx(0.9)
    assert 0.98 < by_intervals[20] < 1
    assert list(by_intervals.values()) == sorted(by_intervals.values())
