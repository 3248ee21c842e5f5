"""Adaptive balance of losses (CTM §2.4): weigh each by the ratio of gradients at the network's last layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

__all__ = ["adaptive_weight", "balance"]


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
    reduce: Callable[[Tensor], Tensor] = lambda gradient: gradient,
) -> tuple[list[Tensor], list[Tensor]]:
    """Weights for losses and the gradient of their weighted sum at the last layer's outputs.

    losses: scalars, the first the reference (its weight is 1). outputs: what the student's last layer returned in each
    of its calls with gradient. weight: that layer's weight. reduce: averages a gradient over processes.
    Returns (weights, gradients): `torch.autograd.backward(outputs, gradients)` then finishes the backward pass, so each
    loss goes back once to the outputs, and everything below them is passed once for all losses.
    """
    at_outputs = [torch.autograd.grad(loss, outputs, retain_graph=True, allow_unused=True) for loss in losses]
    weights = [torch.ones_like(losses[0])]
    if len(losses) > 1:
        at_weight = [reduce(_at_weight(outputs, gradients, weight)) for gradients in at_outputs]
        weights += [adaptive_weight(at_weight[0], other) for other in at_weight[1:]]
    total = []
    for index, output in enumerate(outputs):
        parts = [w * g[index] for w, g in zip(weights, at_outputs, strict=True) if g[index] is not None]
        total.append(torch.stack(parts).sum(0) if parts else torch.zeros_like(output))
    return weights, total


def _at_weight(outputs: Sequence[Tensor], gradients: Sequence[Tensor | None], weight: Tensor) -> Tensor:
    """The gradient of one loss with respect to the last layer's weight, from its gradients at the outputs."""
    used = [(output, gradient) for output, gradient in zip(outputs, gradients, strict=True) if gradient is not None]
    return torch.autograd.grad([o for o, _ in used], weight, [g for _, g in used], retain_graph=True)[0]
