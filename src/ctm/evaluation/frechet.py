"""Fréchet distance between two sets of samples, over any feature module; the metric itself is torchmetrics'."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

__all__ = ["frechet_distance"]


class _AsIs(nn.Module):
    """Features already computed, passed through."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, x: Tensor) -> Tensor:
        return x


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """|μ_a − μ_b|² + tr(Σ_a + Σ_b − 2(Σ_a·Σ_b)^½) of feature rows a (N, F) and b (M, F), with N, M ≥ 2; sums in float64.

    The estimate is biased upwards, the more the fewer the rows: compare only numbers from the same N and M."""
    metric = FrechetInceptionDistance(feature=_AsIs(a.shape[1])).set_dtype(torch.float64)
    metric.update(a.double(), real=True)
    metric.update(b.double(), real=False)
    return float(metric.compute())
