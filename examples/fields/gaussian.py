"""Gaussian random fields of a length scale and a variance, as a model of which everything is known in closed form."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ctm.arguments import as_levels, as_state
from ctm.conditioner import Arrays, Conditioner
from ctm.conditions import Condition
from ctm.noise import match_dims
from ctm.scaling import Scaling

__all__ = ["CHANNELS", "SIDES", "GaussianFields", "cosines", "spectral_density"]

SIDES = (24, 40)
CHANNELS = ((1.0, 0.35), (0.35, 0.25))  # deviations 1 and 0.5, correlation 0.7


def cosines(n: int) -> Tensor:
    """The orthonormal cosine transform (n, n), float64: row k is √(2/n)·cos(πk(j + ½)/n), row 0 divided by √2."""
    j = torch.arange(n, dtype=torch.float64)
    rows = math.sqrt(2 / n) * torch.cos(math.pi * j[:, None] * (j + 0.5) / n)
    return torch.cat([rows[:1] / math.sqrt(2), rows[1:]])


def spectral_density(sides: Sequence[int], length_scale: Tensor) -> Tensor:
    """The variance of each cosine mode (B, H, W) of a Matérn field of smoothness 1, for length scales (B,) in cells.

    λ(k) ∝ (1 + ℓ²|k|²)⁻², k = π(i/H, j/W): the stationary solution of (1 − ℓ²Δ)u = white noise with no flux through the edges
    (Whittle 1954; Lindgren, Rue and Lindström 2011, eq. 2). Its mean over the modes is 1, so that the field has variance 1 on
    average over the cells."""
    k = [math.pi * torch.arange(n, dtype=torch.float64, device=length_scale.device) / n for n in sides]
    square = k[0][:, None] ** 2 + k[1] ** 2
    density = (1 + length_scale.double()[:, None, None] ** 2 * square) ** -2
    return density / density.mean(dim=(1, 2), keepdim=True)


class GaussianFields(nn.Module):
    """Fields x0 (B, C, H, W) ~ N(m, C ⊗ S): C the covariance of the channels, S = variance·(Matérn of length_scale).

    The condition is a mapping with length_scale (B,) in cells and variance (B,); both must be given, for without them the fields
    are a mixture of Gaussians and no Gaussian. The eigenvectors of the covariance are the same for all conditions: cosines over
    the cells, and the eigenvectors of C. So the flow, the score and the density are products in that basis, exact to rounding.

    channels (C, C): covariance of the channels; offset (C,): their means; sides (H, W). Attributes as of any model: shape,
    conditioner, num_classes = 0, sigma_min, sigma_max, sigma_data. Raises ValueError for a matrix that is no covariance."""

    rotation: Tensor
    spread: Tensor
    rows: Tensor
    columns: Tensor
    offset: Tensor
    num_classes = 0

    def __init__(
        self,
        channels: Sequence[Sequence[float]] | Tensor = CHANNELS,
        offset: Sequence[float] | Tensor | None = None,
        *,
        sides: tuple[int, int] = SIDES,
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
    ) -> None:
        super().__init__()
        matrix = torch.as_tensor(channels, dtype=torch.float64)
        if matrix.dim() != 2 or not torch.equal(matrix, matrix.T) or float(torch.linalg.eigvalsh(matrix)[0]) <= 0:
            raise ValueError(f"channels must be a symmetric matrix with positive eigenvalues, got {matrix.tolist()}")
        self.channels = matrix
        spread, rotation = torch.linalg.eigh(matrix)
        self.register_buffer("spread", spread)
        self.register_buffer("rotation", rotation.T.contiguous())
        self.register_buffer("rows", cosines(sides[0]))
        self.register_buffer("columns", cosines(sides[1]))
        mean = torch.zeros(len(matrix)) if offset is None else torch.as_tensor(offset)
        self.register_buffer("offset", mean.double())
        self.shape = (len(matrix), *sides)
        self.conditioner: Conditioner = Arrays({"length_scale": (), "variance": ()})
        self.sigma_min, self.sigma_max = sigma_min, sigma_max
        self.sigma_data = math.sqrt(float(matrix.diagonal().mean()))

    def scaled(self, scaling: Scaling) -> GaussianFields:
        """The model of the same fields in a trained model's numbers, x = (v − offset)/scale by channel."""
        offset, scale = (
            torch.tensor(numbers, dtype=torch.float64).expand(len(self.offset))
            for numbers in (scaling.offset, scaling.scale)
        )
        return GaussianFields(
            self.channels / (scale[:, None] * scale),
            (self.offset - offset) / scale,
            sides=(self.shape[1], self.shape[2]),
            sigma_min=self.sigma_min,
            sigma_max=self.sigma_max,
        )

    def forward(self, x: Tensor, t: Tensor, condition: Condition = None) -> Tensor:
        """Calling a model means denoise."""
        return self.denoise(x, t, condition)

    def denoise(self, x: Tensor, t: Tensor | float, condition: Condition = None) -> Tensor:
        """E[x0 | x_t = x] = m + Σ(Σ + t²)⁻¹(x − m). x (B, C, H, W), t (B,) ≥ 0 -> like x."""
        t, variance = self._known(x, t, condition)
        return self._mean(x) + self._scaled(x, variance / (variance + t**2))

    def score(self, x: Tensor, t: Tensor | float, condition: Condition = None) -> Tensor:
        """∇ log p_t(x) = −(Σ + t²)⁻¹(x − m), like x."""
        t, variance = self._known(x, t, condition)
        return -self._scaled(x, 1 / (variance + t**2))

    def jump(self, x: Tensor, t: Tensor | float, s: Tensor | float, condition: Condition = None) -> Tensor:
        """G(x, t, s), the exact flow from level t to level s: m + √((Σ + s²)(Σ + t²)⁻¹)(x − m), like x."""
        t, variance = self._known(x, t, condition)
        s = match_dims(as_levels(s, x, "s", zero=True).to(x.dtype), x)
        moved = self._mean(x) + self._scaled(x, ((variance + s**2) / (variance + t**2)).sqrt())
        return torch.where(t == s, x, moved)

    def log_prob(self, x: Tensor, sigma: float | Tensor = 0.0, condition: Condition = None) -> Tensor:
        """ln density, in nats, of the fields under noise of level sigma: (B,)."""
        level, variance = self._known(x, sigma, condition)
        variance = variance + level**2
        along = self.modes(x - self._mean(x))
        return -(along.square() / variance + (2 * math.pi * variance).log()).flatten(1).sum(dim=1) / 2

    def sample(self, condition: Mapping[str, Tensor], seed: int = 0) -> Tensor:
        """A field for each row of the condition, float64 (B, C, H, W), the same for the same seed."""
        generator = torch.Generator().manual_seed(seed)
        white = torch.randn(len(condition["variance"]), *self.shape, dtype=torch.float64, generator=generator)
        return self._mean(white) + self.fields(white * self.variances(condition).sqrt())

    def variances(self, condition: Mapping[str, Tensor]) -> Tensor:
        """The variance along each eigenvector of the covariance, float64 (B, C, H, W), in the order of `modes`."""
        density = spectral_density(self.shape[1:], condition["length_scale"])
        return (
            match_dims(condition["variance"].double(), density)[:, None] * self.spread[:, None, None] * density[:, None]
        )

    def modes(self, x: Tensor) -> Tensor:
        """x (B, C, H, W) in the basis of the covariance's eigenvectors: cosines over the cells, rotated channels. Orthonormal."""
        return torch.einsum("dc,bchw->bdhw", self.rotation.to(x), self.rows.to(x) @ x @ self.columns.to(x).T)

    def fields(self, modes: Tensor) -> Tensor:
        """The inverse of `modes`."""
        turned = torch.einsum("dc,bdhw->bchw", self.rotation.to(modes), modes)
        return self.rows.to(modes).T @ turned @ self.columns.to(modes)

    def _mean(self, x: Tensor) -> Tensor:
        return self.offset.to(x)[:, None, None].expand_as(x)

    def _scaled(self, x: Tensor, factor: Tensor) -> Tensor:
        """x − m with each mode multiplied by its factor."""
        return self.fields(self.modes(x - self._mean(x)) * factor)

    def _known(self, x: Tensor, t: Tensor | float, condition: Condition) -> tuple[Tensor, Tensor]:
        """Levels (B, 1, 1, 1) and the variances of the modes, in x's dtype. Raises ValueError for what does not fit."""
        if tuple(as_state(x).shape[1:]) != self.shape:
            raise ValueError(f"x must have shape (B, {', '.join(map(str, self.shape))}), got {tuple(x.shape)}")
        condition = self.conditioner.check(condition, x)
        if not isinstance(condition, Mapping) or not {"length_scale", "variance"} <= condition.keys():
            raise ValueError(
                "the condition must have length_scale and variance: without them the fields are no Gaussian"
            )
        t = match_dims(as_levels(t, x, zero=True).to(x.dtype), x)
        return t, self.variances(condition).to(x)
