"""The posterior of a Gaussian field given points or averages of it: mean, covariance and draws, by linear algebra."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from examples.fields.gaussian import GaussianFields
from torch import Tensor

from ctm.editing import LinearOperator

__all__ = ["Errors", "Posterior", "given", "matrix_of"]


def matrix_of(operator: LinearOperator, shape: tuple[int, ...]) -> Tensor:
    """The operator as a matrix (m, n), float64: what it gives of each of the n unit fields."""
    count = torch.Size(shape).numel()
    return operator.A(torch.eye(count, dtype=torch.float64).reshape(count, *shape)).reshape(count, -1).T


@dataclass(frozen=True)
class Errors:
    """How far samples are from the posterior, each with what exact draws of the same number would show.

    mean: root mean square of (mean of the samples − posterior mean), in units of the posterior's standard deviation, over the
    modes of the posterior. spread: variance of the samples over the posterior's, over the same modes: 1 is right. covariance:
    |C_samples − C|/|C| in the Frobenius norm, C the covariance in the ten widest modes."""

    mean: float
    spread: float
    covariance: float


@dataclass(frozen=True)
class Posterior:
    """x0 given y: N(mean, covariance), mean (n,), covariance (n, n), float64. shape: of a field.

    widths (n,), axes (n, n): the eigenvalues of the covariance, largest first, and its eigenvectors in columns."""

    mean: Tensor
    covariance: Tensor
    shape: tuple[int, ...]
    widths: Tensor
    axes: Tensor

    def sample(self, num: int, seed: int = 0) -> Tensor:
        """Draws (num, *shape), the same for the same seed."""
        generator = torch.Generator().manual_seed(seed)
        white = torch.randn(num, len(self.mean), dtype=torch.float64, generator=generator)
        return (self.mean + white * self.widths.sqrt() @ self.axes.T).reshape(num, *self.shape)

    def errors(self, samples: Tensor, share: float = 0.95) -> Errors:
        """Of samples (num, *shape), in the widest modes that hold this share of the posterior's variance."""
        along = (samples.double().flatten(1) - self.mean) @ self.axes
        kept = int((self.widths.cumsum(0) < share * self.widths.sum()).sum()) + 1
        unit = along[:, :kept] / self.widths[:kept].sqrt()
        ten = torch.diag(self.widths[:10])
        found = torch.cov(along[:, :10].T)
        return Errors(
            float(unit.mean(dim=0).square().mean().sqrt()),
            float(unit.var(dim=0).mean()),
            float((found - ten).norm() / ten.norm()),
        )


def given(
    model: GaussianFields,
    operator: LinearOperator,
    y: Tensor,
    condition: Mapping[str, Any],
    *,
    noise: float = 0.0,
) -> Posterior:
    """The posterior of a field given y = A(x0) + noise·ε (conditioning of a Gaussian; in geostatistics, kriging):

        m + K(y − A·m),  Σ − K·A·Σ,  K = ΣAᵀ(AΣAᵀ + noise²)⁻¹

    y: one measurement, as A gives it; condition: length_scale and variance, a number each."""
    one = {name: torch.as_tensor(value, dtype=torch.float64).reshape(1) for name, value in condition.items()}
    count = torch.Size(model.shape).numel()
    modes = model.fields(torch.eye(count, dtype=torch.float64).reshape(count, *model.shape)).flatten(1)
    prior = modes.T @ (model.variances(one).reshape(-1, 1) * modes)
    matrix = matrix_of(operator, model.shape)
    measured = matrix.abs().amax(dim=1) > 0  # a mask gives 0 where nothing is measured
    matrix, y = matrix[measured], y.double().reshape(-1)[measured]
    mean = model.offset.double()[:, None, None].expand(model.shape).reshape(-1)
    gain = torch.linalg.solve(
        matrix @ prior @ matrix.T + noise**2 * torch.eye(len(matrix), dtype=torch.float64), matrix @ prior
    ).T
    covariance = prior - gain @ matrix @ prior
    covariance = (covariance + covariance.T) / 2
    widths, axes = torch.linalg.eigh(covariance)
    return Posterior(
        mean + gain @ (y - matrix @ mean), covariance, model.shape, widths.flip(0).clamp(min=0), axes.flip(1)
    )
