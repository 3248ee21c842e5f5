"""Directional derivatives of a model by forward-mode differentiation: one more pass beside the forward pass, no backward one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

__all__ = ["directional_derivative"]


def directional_derivative(
    function: Callable[..., Tensor], points: Sequence[Tensor], directions: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """(f(points), d/dh f(points + h·directions) at h = 0), by torch.func.jvp.

    points and directions: tensors of the same shapes. Both results keep their gradient to what f uses, the weights of a network
    among them, where gradients are on. Meanwhile attention computes without its fused kernels, which have no forward derivative,
    and norms as `_DifferentiableNorms` has them."""
    with sdpa_kernel(SDPBackend.MATH), _DifferentiableNorms():
        both: Any = torch.func.jvp(function, tuple(points), tuple(directions))
    return both[0], both[1]


class _DifferentiableNorms(TorchFunctionMode):
    """Layer norms from sums and products meanwhile, and group norms of contiguous inputs.

    torch's own forward derivative of a layer norm is right, but the gradient of that derivative is not (torch 2.13: off by 1 to
    10 % in an MLP's weights). The derivative of a group norm is right, and takes no other layout than contiguous, while
    convolutions give others, such as channels_last."""

    def __torch_function__(
        self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        formula = _FORMULAS.get(function, function)
        return formula(*args, **(kwargs or {}))


def _layer_norm(
    x: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """`torch.nn.functional.layer_norm`."""
    return _affine(_standardised(_full(x), tuple(range(-len(normalized_shape), 0)), eps), weight, bias)


def _group_norm(
    x: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    """`torch.nn.functional.group_norm`."""
    return functional.group_norm(x.contiguous(), num_groups, weight, bias, eps)


def _full(x: Tensor) -> Tensor:
    """In float32 at least, as autocast has norms."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _standardised(x: Tensor, dims: tuple[int, ...], eps: float) -> Tensor:
    centred = x - x.mean(dims, keepdim=True)
    return centred * (centred.square().mean(dims, keepdim=True) + eps).rsqrt()


def _affine(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    x = x if weight is None else x * weight
    return x if bias is None else x + bias


_FORMULAS: dict[Any, Callable[..., Tensor]] = {
    functional.layer_norm: _layer_norm,
    functional.group_norm: _group_norm,
}
