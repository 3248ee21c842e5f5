import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctm.training.ema import adaptive_decay, distillation_points, ema_scales, progressive_points


@given(step=st.integers(0, 999))
def test_progressive_grids_grow_from_start_to_end(step):
    now, later = (progressive_points(k, 1000, 2, 150) for k in (step, step + 1))
    assert 1 <= now <= later <= 150
    assert progressive_points(1000, 1000, 2, 150) == 150


def test_the_adaptive_decay_rises_with_the_grid():
    assert adaptive_decay(0.9, 2, 2) == pytest.approx(0.9)
    assert adaptive_decay(0.9, 2, 1) == pytest.approx(0.9**2)
    assert 0.99 < adaptive_decay(0.9, 2, 150) < 1


def test_distillation_halves_its_steps_down_to_one():
    assert [distillation_points(step, 16, 10) for step in (0, 9, 10, 20, 30, 49, 50, 70)] == [16, 16, 8, 4, 2, 2, 1, 1]


def test_fixed_schedules_are_fixed():
    arguments = {"start_decay": 0.999, "start_points": 18}
    assert ema_scales(7, decay_mode="fixed", points_mode="fixed", **arguments) == (0.999, 18)
    decay, points = ema_scales(1000, decay_mode="fixed", points_mode="progressive", **arguments)
    assert (decay, points) == (0.999, 151)


def test_a_schedule_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="no schedule has decay_mode 'adaptive' and points_mode 'fixed'"):
        ema_scales(0, decay_mode="adaptive", points_mode="fixed", start_decay=0.9, start_points=2)
