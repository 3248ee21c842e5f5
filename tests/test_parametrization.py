import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ctm.parametrization import denoiser_multiple, input_scaling, jump_from_g, outer_scaling, output_scalings

INNER, OUTER = ("edm", "cm", "no"), ("euler", "variance", "euler_variance_mixed")
LEVELS = st.floats(0.002, 80)


def scalar(value: float) -> torch.Tensor:
    return torch.tensor([value], dtype=torch.float64)


@given(t=LEVELS, sigma_data=st.floats(0.1, 2))
def test_edm_scalings_are_the_formula(t, sigma_data):
    c_skip, c_out = output_scalings("edm", scalar(t), sigma_data, 0.002)
    total = t**2 + sigma_data**2
    assert c_skip.item() == pytest.approx(sigma_data**2 / total, rel=1e-12)
    assert c_out.item() == pytest.approx(t * sigma_data / total**0.5, rel=1e-12)
    assert input_scaling(scalar(t), sigma_data).item() == pytest.approx(1 / total**0.5, rel=1e-12)


def test_cm_scaling_is_the_identity_at_sigma_min():
    c_skip, c_out = output_scalings("cm", scalar(0.002), 0.5, 0.002)
    assert (c_skip.item(), c_out.item()) == (1.0, 0.0)


def test_no_scaling_is_the_network():
    c_skip, c_out = output_scalings("no", scalar(3.0), 0.5, 0.002)
    assert (c_skip.item(), c_out.item()) == (0.0, 1.0)


@pytest.mark.parametrize("outer", OUTER)
@given(t=LEVELS, x=st.floats(-100, 100), g=st.floats(-5, 5))
def test_the_jump_to_the_same_level_is_x_itself(outer, t, x, g):
    for dtype in (torch.float32, torch.float64):
        x_, g_, t_ = (torch.tensor([v], dtype=dtype) for v in (x, g, t))
        assert torch.equal(jump_from_g(outer, x_, g_, t_, t_, 0.5, 0.002), x_)


@given(t=LEVELS, share=st.floats(0.001, 0.999), x=st.floats(-100, 100), g=st.floats(-5, 5))
def test_euler_form_is_the_papers_equation(t, share, x, g):
    s = share * t
    jumped = jump_from_g("euler", scalar(x), scalar(g), scalar(t), scalar(s), 0.5, 0.002)
    assert jumped.item() == pytest.approx(s / t * x + (1 - s / t) * g, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("outer", OUTER)
@given(t=st.floats(0.01, 80), x=st.floats(-10, 10), g=st.floats(-2, 2))
def test_the_slope_at_s_equal_t_is_the_flow_of_the_denoiser(outer, t, x, g):
    """∂G/∂s at s = t must be (x − D)/t with D = g + multiple·x, by automatic differentiation, g held fixed."""
    s = scalar(t * (1 - 1e-12)).requires_grad_()
    jumped = outer_scaling(outer, scalar(t), s, 0.5, 0.002) * x + (1 - s / t) * g
    (slope,) = torch.autograd.grad(jumped, s)
    denoised = g + denoiser_multiple(outer, scalar(t), 0.5, 0.002).item() * x
    assert slope.item() == pytest.approx((x - denoised) / t, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize(("inner", "outer"), list(itertools.product(INNER, OUTER)))
def test_float32_agrees_with_float64(inner, outer):
    generator = torch.Generator().manual_seed(0)
    t = torch.rand(100, generator=generator, dtype=torch.float64) * 79 + 0.5
    s = t * torch.rand(100, generator=generator, dtype=torch.float64) * 0.9
    s = s.clamp(min=0.002)
    x, f = torch.randn(2, 100, generator=generator, dtype=torch.float64)
    x = x * t

    def whole(*tensors):
        x, f, t, s = tensors
        c_skip, c_out = output_scalings(inner, t, 0.5, 0.002)
        g = c_skip * x + c_out * f
        return jump_from_g(outer, x, g, t, s, 0.5, 0.002), g + denoiser_multiple(outer, t, 0.5, 0.002) * x

    for double, single in zip(whole(x, f, t, s), whole(*(v.float() for v in (x, f, t, s))), strict=True):
        assert ((double - single).abs().max() / double.abs().max()).item() < 2e-6


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="inner must be one of edm, cm, no, got 'vp'"):
        output_scalings("vp", scalar(1.0), 0.5, 0.002)
    with pytest.raises(ValueError, match="outer must be one of euler, variance, euler_variance_mixed, got 'ddim'"):
        outer_scaling("ddim", scalar(1.0), scalar(0.5), 0.5, 0.002)
    with pytest.raises(ValueError, match="outer must be one of"):
        denoiser_multiple("ddim", scalar(1.0), 0.5, 0.002)
