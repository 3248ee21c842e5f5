import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ctm import weighting
from ctm.noise import edm_weight

LEVELS = st.floats(0.002, 80)
ALL = [getattr(weighting, name) for name in weighting.__all__]


@pytest.mark.parametrize("weight", ALL)
@given(t=LEVELS, share=st.floats(0.01, 0.99), sigma_data=st.floats(0.1, 2))
def test_weights_are_positive_and_shaped_like_t(weight, t, share, sigma_data):
    levels = torch.full((2, 1), t, dtype=torch.float64)
    result = weight(levels, share * levels, sigma_data)
    assert result.shape == levels.shape
    assert result.dtype == torch.float64
    assert bool((result > 0).all())


@given(t=LEVELS, sigma_data=st.floats(0.1, 2))
def test_the_weights_of_the_signal_to_noise_ratio_are_related(t, sigma_data):
    t = torch.tensor(t, dtype=torch.float64)
    ratio = weighting.snr(t, t, sigma_data)
    torch.testing.assert_close(ratio, 1 / t**2)
    torch.testing.assert_close(weighting.snr_plus_one(t, t, sigma_data), ratio + 1)
    torch.testing.assert_close(weighting.karras(t, t, sigma_data), ratio + sigma_data**-2)
    torch.testing.assert_close(weighting.karras(t, t, sigma_data), edm_weight(t, sigma_data))
    torch.testing.assert_close(weighting.truncated_snr(t, t, sigma_data), torch.maximum(ratio, torch.ones(())))


@given(t=LEVELS, share=st.floats(0.01, 0.99))
def test_uniform_g_undoes_the_factor_of_g(t, share):
    """Two jumps that differ by δ in g differ by (1 − s/t)·δ, and the weight of power 2 makes its square δ² again."""
    t = torch.tensor(t, dtype=torch.float64)
    s = share * t
    difference = (1 - s / t) * 0.3
    torch.testing.assert_close(
        weighting.uniform_g(t, s, 0.5, power=2.0) * difference**2, torch.tensor(0.09, dtype=torch.float64)
    )
