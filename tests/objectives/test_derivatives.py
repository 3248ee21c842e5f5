"""Forward-mode derivatives of the networks, and the gradients of these derivatives, against finite differences."""

import pytest
import torch
from torch import nn

from ctm import TrajectoryModel
from ctm.networks import ADM, MLP, DDPMpp, NCSNpp
from ctm.objectives.derivatives import directional_derivative

from ..conftest import random_weights
from .flows import F64

NETWORKS = {
    "MLP": lambda: MLP((1, 8, 8), 3, width=16, blocks=1, embedding=16),
    "DDPMpp": lambda: DDPMpp((1, 8, 8), 3, channels=8, channel_mult=[1, 2], blocks=1, attention=[4, 8]),
    "NCSNpp": lambda: NCSNpp((1, 8, 8), 3, channels=8, channel_mult=[1, 2], blocks=1, attention=[4]),
    "ADM": lambda: ADM((1, 8, 8), 3, channels=8, channel_mult=[1, 2], blocks=1, attention=[4]),
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("channels_last", [False, True])
def test_every_network_has_the_derivative_and_its_gradient(name, channels_last):
    """Against central differences of step 1e-6, and so for the gradient of the derivative, which torch's own norms have wrong by
    1 to 10 %. Labels and attention take part, and every weight gets a gradient."""
    model = random_weights(TrajectoryModel(NETWORKS[name](), shape=(1, 8, 8), num_classes=3)).double()
    if channels_last:
        model.to(memory_format=torch.channels_last)
    x = torch.randn(4, 1, 8, 8, dtype=F64)
    t, s = torch.tensor([2.0, 3.0, 4.0, 5.0], dtype=F64), torch.tensor([1.0, 0.5, 1.5, 2.0], dtype=F64)
    labels, weights = torch.tensor([0, 2, -1, 1]), list(model.parameters())

    def jump(s: torch.Tensor) -> torch.Tensor:
        return model.jump(x, t, s, labels)

    end, slope = directional_derivative(jump, (s,), (torch.ones_like(s),))
    differences = (jump(s + 1e-6) - jump(s - 1e-6)) / 2e-6
    torch.testing.assert_close(end, jump(s))
    assert close(slope, differences)
    found, expected = (torch.autograd.grad(value.square().sum(), weights) for value in (slope, differences))
    assert all(close(a, b) for a, b in zip(found, expected, strict=True))


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Within 1e-3 of the norm; 1e-6 where it is zero, such as that of a bias that the next norm takes away."""
    return bool((a - b).norm() <= 1e-3 * b.norm() + 1e-6)


@pytest.mark.parametrize("norm", [nn.LayerNorm((6, 4)), nn.LayerNorm(4, elementwise_affine=False), nn.GroupNorm(3, 6)])
def test_norms_are_torchs(norm):
    """Value and derivative in float64 to rounding, with weights that are not one, of rows that are not contiguous."""
    random_weights(norm).double()
    x, direction = torch.randn(2, 4, 6, 5, dtype=F64).transpose(1, 3)
    value, slope = directional_derivative(norm, (x,), (direction,))
    torch.testing.assert_close(value, norm(x))
    torch.testing.assert_close(slope, torch.func.jvp(norm, (x.contiguous(),), (direction.contiguous(),))[1])


def test_layer_norms_compute_in_float32_where_the_rest_is_lower():
    x, norm = torch.randn(5, 4).bfloat16(), nn.LayerNorm(4)
    with torch.autocast("cpu", torch.bfloat16):
        value, slope = directional_derivative(norm, (x,), (torch.ones_like(x),))
    assert value.dtype == slope.dtype == torch.float32
    torch.testing.assert_close(value, norm(x.float()))
