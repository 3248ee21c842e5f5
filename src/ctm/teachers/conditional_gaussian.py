"""A Gaussian whose mean is an affine function of a condition, as a model whose flow, score and density are known: the ground
truth of conditions that are arrays."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from ctm.arguments import as_count, as_levels, as_number, as_seed, as_state
from ctm.conditioner import Arrays, Conditioner
from ctm.conditions import Condition, presence
from ctm.noise import match_dims

__all__ = ["ConditionalGaussian"]


class ConditionalGaussian(nn.Module):
    """Data x0 = A·y + b + c·ε with ε ~ N(0, I): given y ~ N(0, I) it is N(A·y + b, c²·I), without y it is N(b, c²·I + AAᵀ).

    matrix (*shape, k): A; offset (*shape): b; std: c > 0. The condition is a mapping {name: y} with y (B, k); a row of which
    NAME_present says False is without y. `denoise`, `score`, `jump`, `log_prob` and `sample` are exact. Attributes as of any
    model: shape, conditioner, num_classes = 0, sigma_min, sigma_max, and sigma_data, the data's standard deviation over all
    coordinates.
    Raises ValueError for unfitting shapes and values."""

    matrix: Tensor
    offset: Tensor
    num_classes = 0

    def __init__(
        self,
        matrix: Tensor,
        offset: Tensor,
        std: float,
        *,
        name: str = "y",
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
    ) -> None:
        super().__init__()
        matrix, offset = torch.as_tensor(matrix), torch.as_tensor(offset)
        if matrix.dim() < 2 or matrix.shape[:-1] != offset.shape or not matrix.is_floating_point():
            raise ValueError(
                "matrix must be floating point (*shape, k) and offset (*shape), got "
                f"{tuple(matrix.shape)} and {tuple(offset.shape)}"
            )
        self.std = as_number(std, "std", 0, above=True, why="the flow is not defined for points")
        self.register_buffer("matrix", matrix)
        self.register_buffer("offset", offset.to(matrix.dtype))
        self.name, self.shape = name, tuple(offset.shape)
        self.conditioner: Conditioner = Arrays({name: (matrix.shape[-1],)})
        self.sigma_min, self.sigma_max = sigma_min, sigma_max
        flat = matrix.double().reshape(-1, matrix.shape[-1])
        self.sigma_data = math.sqrt(
            self.std**2 + float(flat.square().sum(dim=1).mean() + offset.double().var(correction=0))
        )
        self.directions, self.spread = _principal(flat)  # float64; AAᵀ = U·diag(λ)·Uᵀ

    def forward(self, x: Tensor, t: Tensor, condition: Condition = None) -> Tensor:
        """Calling a model means denoise."""
        return self.denoise(x, t, condition)

    def denoise(self, x: Tensor, t: Tensor, condition: Condition = None) -> Tensor:
        """E[x_0 | x_t = x] = m + Σ(Σ + t²·I)⁻¹(x − m), m and Σ the data's mean and covariance given the condition. x (B, *shape),
        t (B,) ≥ 0 -> like x."""
        t, mean, known = self._known(x, t, condition)
        return mean + self._scaled(
            x - mean, known, lambda variance: variance / (variance + t[:, None].to(variance) ** 2)
        )

    def score(self, x: Tensor, t: Tensor, condition: Condition = None) -> Tensor:
        """∇ log p_t(x) = −(Σ + t²·I)⁻¹(x − m); t = 0 is allowed. Shapes as in `denoise`."""
        t, mean, known = self._known(x, t, condition)
        return -self._scaled(x - mean, known, lambda variance: 1 / (variance + t[:, None].to(variance) ** 2))

    def jump(self, x: Tensor, t: Tensor, s: Tensor, condition: Condition = None) -> Tensor:
        """The exact flow from level t to level s (any order, 0 allowed), like x: x_s = m + √((Σ + s²·I)(Σ + t²·I)⁻¹)·(x − m)."""
        t, mean, known = self._known(x, t, condition)
        s = as_levels(s, x, "s", zero=True).to(x.dtype)

        def ratio(variance: Tensor) -> Tensor:
            low, high = (level[:, None].to(variance) ** 2 for level in (s, t))
            return ((variance + low) / (variance + high)).sqrt()

        moved = mean + self._scaled(x - mean, known, ratio)
        return torch.where(match_dims((t == s).to(x.dtype), x) > 0, x, moved)

    def log_prob(self, x: Tensor, sigma: float | Tensor = 0.0, condition: Condition = None) -> Tensor:
        """ln density, in nats, of the data blurred by N(0, sigma²·I): (B,). x (B, *shape); sigma ≥ 0, a number or (B,)."""
        level, mean, known = self._known(x, sigma, condition)
        rows = (x - mean).flatten(1)
        variance = self._variance(known, rows) + level[:, None] ** 2
        along = rows @ self.directions.to(rows)
        return -(along.square() / variance + (2 * math.pi * variance).log()).sum(dim=1) / 2

    def sample(self, n: int, seed: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
        """n draws of the data (n, *shape) and the condition of each, {name: (n, k)}, the same for the same seed."""
        n, generator = as_count(n, "n", 0), torch.Generator().manual_seed(as_seed(seed))
        dtype, device = self.matrix.dtype, self.matrix.device
        y = torch.randn(n, self.matrix.shape[-1], dtype=dtype, generator=generator).to(device)
        noise = torch.randn(n, *self.shape, dtype=dtype, generator=generator).to(device)
        return self._mean_of(y) + self.std * noise, {self.name: y}

    def _mean_of(self, y: Tensor) -> Tensor:
        """A·y + b, (B, *shape)."""
        return torch.tensordot(y, self.matrix.to(y), dims=([1], [self.matrix.dim() - 1])) + self.offset.to(y)

    def _known(self, x: Tensor, t: Tensor | float, condition: Condition) -> tuple[Tensor, Tensor, Tensor]:
        """Levels (B,), the mean of each sample's data like x, and bool (B,): whether its y is known. Raises ValueError for what
        does not fit."""
        if tuple(as_state(x).shape[1:]) != self.shape:
            raise ValueError(f"x must have shape (B, {', '.join(map(str, self.shape))}), got {tuple(x.shape)}")
        condition = self.conditioner.check(condition, x)
        known = presence(condition, self.name, len(x), x.device)
        mean = self.offset.to(x).expand_as(x)
        if isinstance(condition, Mapping) and self.name in condition:
            mean = torch.where(match_dims(known.to(x.dtype), x) > 0, self._mean_of(condition[self.name].to(x)), mean)
        return as_levels(t, x, zero=True).to(x.dtype), mean, known

    def _variance(self, known: Tensor, rows: Tensor) -> Tensor:
        """The data's variance along each principal direction, (B, n): c² where y is known, else c² + λ."""
        return self.std**2 + torch.where(known[:, None], torch.zeros_like(rows[:1]), self.spread.to(rows))

    def _scaled(self, x: Tensor, known: Tensor, factor: Callable[[Tensor], Tensor]) -> Tensor:
        """x with each principal direction multiplied by factor(variance along it), like x."""
        rows = x.flatten(1)
        directions = self.directions.to(rows)
        scaled = (rows @ directions) * factor(self._variance(known, rows))
        return (scaled @ directions.T).reshape(x.shape)


def _principal(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """The eigenvectors (n, n) of AAᵀ in columns, and its eigenvalues (n,)."""
    values, vectors = torch.linalg.eigh(matrix @ matrix.T)
    return vectors, values.clamp(min=0)
