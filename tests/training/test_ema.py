import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ctm.training.ema import Decay, PowerFunction, move_average, power_exponent


@given(gamma=st.floats(0.0, 60.0))
def test_the_exponent_is_that_of_the_relative_width(gamma):
    """σ_rel is by definition the standard deviation of the density (γ + 1)·τ^γ on [0, 1]: from its moments
    E τ = (γ+1)/(γ+2) and E τ² = (γ+1)/(γ+3)."""
    width = ((gamma + 1) / (gamma + 3) - ((gamma + 1) / (gamma + 2)) ** 2) ** 0.5
    assert power_exponent(min(width, 12**-0.5)) == pytest.approx(gamma, rel=1e-5, abs=1e-5)


def test_published_widths_have_their_exponents():
    """γ = 6.94 and 16.97 belong to σ_rel = 0.10 and 0.05 (arXiv 2312.02696, section 3.1)."""
    assert power_exponent(0.10) == pytest.approx(6.94, abs=0.005)
    assert power_exponent(0.05) == pytest.approx(16.97, abs=0.005)


@pytest.mark.parametrize("sigma_rel", [0.05, 0.1, 0.25])
def test_a_power_function_average_is_the_closed_form(sigma_rel):
    """After T steps the weights of step τ count as the integral of (γ + 1)·u^γ/T^(γ+1) over (τ − 1, τ), and the initial ones
    not at all; the profile's measured width is σ_rel."""
    profile, total = PowerFunction(sigma_rel), 400
    model, average = torch.nn.Linear(1, 1, bias=False).double(), torch.nn.Linear(1, 1, bias=False).double()
    values = torch.randn(total, dtype=torch.float64)
    for step, value in enumerate(values):
        model.weight.data.fill_(value)
        move_average(average, model, profile.at(step))
    edges = (np.arange(total + 1) / total) ** (power_exponent(sigma_rel) + 1)
    counts = np.diff(edges)
    assert average.weight.item() == pytest.approx(float(counts @ values.numpy()), rel=1e-9)
    times = (np.arange(total) + 0.5) / total
    width = np.sqrt(counts @ times**2 - (counts @ times) ** 2)
    assert width == pytest.approx(sigma_rel, rel=1e-3)


def test_averages_out_of_range_are_sentences():
    with pytest.raises(ValueError, match=r"sigma_rel of an average must be in \(0, 0.288\], got 0.3"):
        PowerFunction(0.3)
    with pytest.raises(ValueError, match=r"decay of an average must be in \[0, 1\], got 1.5"):
        Decay(1.5)
