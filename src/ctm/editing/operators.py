"""What is known of a picture, as a linear operator A with its pseudo-inverse; the named ones are instances."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["LinearOperator", "averaging", "greying", "masking"]

LUMA = (0.2989, 0.5870, 0.1140)  # of red, green and blue


@dataclass(frozen=True)
class LinearOperator:
    """A measures images x (B, *shape); A_pinv is its Moore-Penrose inverse, so that A_pinv∘A is an orthogonal projection.
    Both are linear and act on each sample alone."""

    A: Callable[[Tensor], Tensor]
    A_pinv: Callable[[Tensor], Tensor]

    def projection(self, x: Tensor) -> Tensor:
        """What of x is measured, in the space of x."""
        return self.A_pinv(self.A(x))


def masking(known: Tensor) -> LinearOperator:
    """Inpainting: the values where `known` (bool, broadcasting to an image) are measured, the others are 0."""
    if known.dtype != torch.bool:
        raise ValueError(f"known must be a mask of bools, true where the image is kept, got {known.dtype}")

    def keep(x: Tensor) -> Tensor:
        return torch.where(known.to(x.device), x, torch.zeros_like(x))

    return LinearOperator(keep, keep)


def averaging(sides: tuple[int, int], to: tuple[int, int]) -> LinearOperator:
    """Super-resolution: images of `sides` (H, W) are measured as area averages on `to` (h, w) pixels, for any h ≤ H, w ≤ W;
    a whole factor averages patches. Raises ValueError for larger or empty targets."""
    if not (1 <= to[0] <= sides[0] and 1 <= to[1] <= sides[1]):
        raise ValueError(
            f"a smaller picture has at least 1×1 and at most {sides[0]}×{sides[1]} pixels, got {to[0]}×{to[1]}"
        )
    down = [_area(side, small) for side, small in zip(sides, to, strict=True)]
    up = [torch.linalg.pinv(matrix) for matrix in down]

    def apply(matrices: list[Tensor], x: Tensor) -> Tensor:
        rows, columns = (matrix.to(x) for matrix in matrices)
        return rows @ x @ columns.T

    return LinearOperator(lambda x: apply(down, x), lambda y: apply(up, y))


def _area(side: int, small: int) -> Tensor:
    """(small, side), float64: the share of each old pixel in each new one, rows summing to 1."""
    edges = torch.arange(small + 1, dtype=torch.float64) * side / small
    pixels = torch.arange(side, dtype=torch.float64)
    low = torch.maximum(edges[:-1, None], pixels)
    high = torch.minimum(edges[1:, None], pixels + 1)
    return (high - low).clamp(min=0) * small / side


def greying() -> LinearOperator:
    """Colourisation: pictures (B, 3, H, W) are measured as luma (B, 1, H, W) with the weights LUMA."""

    def grey(x: Tensor) -> Tensor:
        return torch.einsum("c,bchw->bhw", torch.tensor(LUMA, dtype=x.dtype, device=x.device), x)[:, None]

    def colour(y: Tensor) -> Tensor:
        weights = torch.tensor(LUMA, dtype=y.dtype, device=y.device)
        return y * (weights / weights.square().sum())[:, None, None]

    return LinearOperator(grey, colour)
