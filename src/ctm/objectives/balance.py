"""Adaptive balance of losses (VQGAN, arXiv 2012.09841): weigh each by the ratio of gradients at the network's last layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

__all__ = ["adaptive_weight", "balance", "balance_chained"]


def adaptive_weight(
    reference: Tensor, other: Tensor, *, low: float = 0.0, high: float = 1e4, offset: float = 1e-4
) -> Tensor:
    """λ = ‖∇L_reference‖/(‖∇L_other‖ + 10⁻⁴), clamped to [low, high]; from the two gradients of one weight."""
    return (reference.norm() / (other.norm() + offset)).clamp(low, high)


def balance(
    losses: Sequence[Tensor],
    outputs: Sequence[Tensor],
    weight: Tensor,
    *,
    factors: Sequence[float] | None = None,
    ranges: Sequence[tuple[float, float]] | None = None,
    adaptive: bool = True,
    reduce: Callable[[Tensor], Tensor] = lambda gradient: gradient,
) -> tuple[list[Tensor], list[Tensor]]:
    """Adaptive weights λ of losses (the first is the reference, λ = 1), and the gradient of Σ factor·λ·loss at the outputs.

    losses: scalars. outputs: what the student's last layer returned in each of its calls with gradient; none may depend on
    another (see `balance_chained`). weight: that layer's weight. factors: constant, 1 where None. ranges: (low, high) of
    each λ, [0, 10⁴] where None. adaptive: False leaves all λ = 1. reduce: averages a gradient over processes.
    Returns (λ, gradients): `torch.autograd.backward(outputs, gradients)` then finishes the backward pass, so each loss goes
    back once to the outputs, and everything below them is passed once for all losses.
    """
    at_outputs = [torch.autograd.grad(loss, outputs, retain_graph=True, allow_unused=True) for loss in losses]
    weights = [torch.ones_like(loss) for loss in losses]
    if adaptive and len(losses) > 1:
        at_weight = [reduce(_at_weight(outputs, gradients, weight)) for gradients in at_outputs]
        weights[1:] = _weights(at_weight, ranges)
    scales = [w * factor for w, factor in zip(weights, factors or [1.0] * len(losses), strict=True)]
    total = []
    for index, output in enumerate(outputs):
        parts = [scale * g[index] for scale, g in zip(scales, at_outputs, strict=True) if g[index] is not None]
        total.append(torch.stack(parts).sum(0) if parts else torch.zeros_like(output))
    return weights, total


def balance_chained(
    losses: Sequence[Tensor],
    weight: Tensor,
    *,
    factors: Sequence[float] | None = None,
    ranges: Sequence[tuple[float, float]] | None = None,
    adaptive: bool = True,
    reduce: Callable[[Tensor], Tensor] = lambda gradient: gradient,
) -> tuple[list[Tensor], Tensor]:
    """`balance` for losses in which the student's output goes through the student again: (λ, Σ factor·λ·loss), at the price
    of one more pass back to the first call for each loss. Arguments as there."""
    weights = [torch.ones_like(loss) for loss in losses]
    if adaptive and len(losses) > 1:
        at_weight = [reduce(torch.autograd.grad(loss, weight, retain_graph=True)[0]) for loss in losses]
        weights[1:] = _weights(at_weight, ranges)
    scaled = zip(losses, weights, factors or [1.0] * len(losses), strict=True)
    return weights, torch.stack([factor * w * loss for loss, w, factor in scaled]).sum()


def _weights(gradients: Sequence[Tensor], ranges: Sequence[tuple[float, float]] | None) -> list[Tensor]:
    """λ of all losses but the first, from the gradients of all."""
    limits = ranges or [(0.0, 1e4)] * len(gradients)
    pairs = zip(gradients[1:], limits[1:], strict=True)
    return [adaptive_weight(gradients[0], other, low=low, high=high) for other, (low, high) in pairs]


def _at_weight(outputs: Sequence[Tensor], gradients: Sequence[Tensor | None], weight: Tensor) -> Tensor:
    """The gradient of one loss with respect to the last layer's weight, from its gradients at the outputs."""
    used = [(output, gradient) for output, gradient in zip(outputs, gradients, strict=True) if gradient is not None]
    return torch.autograd.grad([o for o, _ in used], weight, [g for _, g in used], retain_graph=True)[0]
