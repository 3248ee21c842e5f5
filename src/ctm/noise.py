"""Noise levels: the Karras coordinate, grids on it, and the random draws of times used in training.

The noise level *is* the time (x_t = x_0 + t·ε, EDM's convention). The Karras coordinate ξ in [0, 1] runs from sigma_max
(ξ = 0) to sigma_min (ξ = 1). Everything here is a pure function of numbers, tensors and a generator.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ctm.arguments import as_count, as_float_type, as_number

__all__ = [
    "Times",
    "continuous_times",
    "draw_solver_steps",
    "draw_span",
    "edm_weight",
    "grid_times",
    "half_lognormal",
    "half_lognormal_levels",
    "index_grid",
    "karras_grid",
    "karras_level",
    "log_linear_grid",
    "lognormal",
    "lognormal_levels",
    "match_dims",
    "normal_like",
    "to_zero",
]


def match_dims(t: Tensor, x: Tensor) -> Tensor:
    """t (B,) as (B, 1, …, 1) in x's dtype, ready to multiply x (B, …)."""
    return t.to(x.dtype).reshape(-1, *(1,) * (x.dim() - 1))


def normal_like(like: Tensor, generator: torch.Generator) -> Tensor:
    """Standard normal numbers like `like`. generator: on the CPU.

    On another device the numbers come from a generator of that device, seeded from the given one. So nothing as large as a
    batch is copied between devices."""
    if like.device.type == "cpu":
        return torch.randn(like.shape, generator=generator).to(like)
    seed = int(torch.randint(2**63 - 1, (), generator=generator))
    if like.device.type == "meta":
        return torch.empty_like(like)
    there = torch.Generator(like.device).manual_seed(seed)
    return torch.randn(like.shape, generator=there, device=like.device).to(like)


def karras_level(xi: Tensor, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> Tensor:
    """Noise level at the Karras coordinate xi: (M^(1/ρ) + ξ·(m^(1/ρ) − M^(1/ρ)))^ρ   (EDM, arXiv 2206.00364, eq. 5).

    xi any shape, values in [0, 1]: 0 gives sigma_max = M, 1 gives sigma_min = m. Returns the shape and dtype of xi.
    """
    top, bottom = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    return (top + xi * (bottom - top)) ** rho


def _check_grid(steps: int, sigma_min: float, sigma_max: float) -> None:
    """Raises ValueError for steps < 1 or unless 0 < sigma_min < sigma_max."""
    as_count(steps, "steps", why="a grid needs one interval or more")
    sigma_min, sigma_max = as_number(sigma_min, "sigma_min"), as_number(sigma_max, "sigma_max")
    if not 0 < sigma_min < sigma_max:
        raise ValueError(f"a grid needs 0 < sigma_min < sigma_max, got sigma_min={sigma_min} and sigma_max={sigma_max}")


def _float_type(dtype: torch.dtype | None) -> torch.dtype:
    """The type of a grid; None gives torch's default. Raises ValueError for a type in which small levels would be 0."""
    return torch.get_default_dtype() if dtype is None else as_float_type(dtype)


def karras_grid(
    steps: int,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    rho: float = 7.0,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """steps + 1 noise levels from sigma_max down to sigma_min, even in the Karras coordinate (arXiv 2206.00364, eq. 5).

    steps ≥ 1 is the number of intervals, rho ≥ 1 bends the grid towards small levels. Computed in float64 with both ends
    exact, then cast to dtype (torch's default dtype). Returns (steps + 1,). Raises ValueError for steps < 1, rho < 1, unless
    0 < sigma_min < sigma_max, and for a dtype of whole numbers, in which small levels would be 0.
    """
    _check_grid(steps, sigma_min, sigma_max)
    dtype = _float_type(dtype)
    rho = as_number(rho, "rho", 1, why="7 is EDM's, 1 spaces the levels evenly")
    levels = karras_level(torch.linspace(0, 1, int(steps) + 1, dtype=torch.float64), sigma_min, sigma_max, rho)
    levels[0], levels[-1] = sigma_max, sigma_min
    return levels.to(dtype=dtype, device=device)


def log_linear_grid(
    steps: int, sigma_min: float = 0.002, sigma_max: float = 80.0, *, dtype: torch.dtype | None = None
) -> Tensor:
    """steps + 1 noise levels from sigma_max down to sigma_min, even in ln σ: the limit of `karras_grid` for large rho.

    Computed in float64 with both ends exact. Returns (steps + 1,). Raises ValueError as `karras_grid`."""
    _check_grid(steps, sigma_min, sigma_max)
    dtype = _float_type(dtype)
    share = torch.linspace(0, 1, int(steps) + 1, dtype=torch.float64)
    levels = sigma_max * (sigma_min / sigma_max) ** share
    levels[0], levels[-1] = sigma_max, sigma_min
    return levels.to(dtype)


def index_grid(
    steps: int,
    points: int,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    rho: float = 7.0,
    *,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """steps + 1 of the levels of karras_grid(points − 1), with indices that are even up to rounding. A discretely trained
    model knows exactly these levels (consistency models and sony/ctm give the indices by hand, e.g. 0, 22, 39).

    Returns (steps + 1,). Raises ValueError as `karras_grid`, and unless 1 ≤ steps ≤ points − 1."""
    if not 1 <= as_count(steps, "steps") <= as_count(points, "points") - 1:
        raise ValueError(f"an index grid takes 1 … points − 1 steps, got {steps} steps on {points} points")
    dtype = _float_type(dtype)
    fine = karras_grid(points - 1, sigma_min, sigma_max, rho, dtype=torch.float64)
    chosen = (torch.arange(steps + 1, dtype=torch.float64) * (points - 1) / steps).round().long()
    return fine[chosen].to(dtype)


def to_zero(levels: Tensor) -> Tensor:
    """The levels (N,) with a final 0, (N + 1,). Samplers of the denoiser take a last step to it. Heun's method makes one
    evaluation in that step, so 18 levels and 0 take 35."""
    return torch.cat([levels, levels.new_zeros(1)])


def edm_weight(sigma: Tensor, sigma_data: float = 0.5) -> Tensor:
    """w(σ) = (σ² + σ_d²)/(σ·σ_d)², the denoising loss weight of EDM (arXiv 2206.00364, table 1); same shape as sigma."""
    return (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2


@dataclass(frozen=True)
class Times:
    """The times of one matching step. path (k + 1, B): the levels the solver visits, from t = path[0] to u = path[-1];
    s (B,): where both jumps end, s ≤ u < t for each sample."""

    path: Tensor
    s: Tensor

    @property
    def t(self) -> Tensor:
        return self.path[0]

    @property
    def u(self) -> Tensor:
        return self.path[-1]

    def rows(self, part: slice) -> Times:
        """The times of a part of the batch."""
        return Times(self.path[:, part], self.s[part])


def draw_solver_steps(max_steps: int, power: float = 1.0, *, generator: torch.Generator | None = None) -> int:
    """A number k of solver steps for the whole batch: P(k) ∝ k^power on 1 … max_steps (sony/ctm: 'weighted'; power 0 is its
    'uniform')."""
    device = generator.device if generator is not None else None
    weights = torch.arange(1, max_steps + 1, dtype=torch.float64, device=device) ** power
    return int(torch.multinomial(weights, 1, generator=generator)) + 1


def draw_span(largest: float, power: float = 1.0, *, generator: torch.Generator | None = None) -> float:
    """The length of the solver's walk in the Karras coordinate, in continuous time, for the whole batch. Its density is ∝
    span^power on (0, largest], power ≥ 0 (0: uniform, as in the official code). It is at least a thousandth of `largest`."""
    device = generator.device if generator is not None else None
    uniform = torch.rand((), generator=generator, device=device, dtype=torch.float64).item()
    return max(uniform ** (1 / (1 + power)), 1e-3) * largest


def grid_times(
    n: int, grid: Tensor, solver_steps: int, *, s_from_u: bool = False, generator: torch.Generator | None = None
) -> Times:
    """Times on a grid (sony/ctm, cm/resample.py): index of t uniform on 0 … N−1−k, index of u = index of t + k, index of s
    uniform on u … N−1, where N = len(grid) and k = solver_steps.

    n: number of samples. grid: (N,) decreasing. s_from_u: s = u (global matching). Returns Times in grid's dtype and device.
    Raises ValueError unless 1 ≤ k ≤ N − 1."""
    last = len(grid) - 1
    if not 1 <= solver_steps <= last:
        raise ValueError(f"solver_steps must be in 1 … {last} on a grid of {len(grid)} levels, got {solver_steps}")
    device = generator.device if generator is not None else grid.device
    i = torch.randint(0, last - solver_steps + 1, (n,), generator=generator, device=device).to(grid.device)
    fraction = torch.rand(n, generator=generator, dtype=torch.float64, device=device).to(grid.device)
    u = i + solver_steps
    s = u if s_from_u else u + (fraction * (last - u + 1)).long()
    path = i + torch.arange(solver_steps + 1, device=grid.device)[:, None]
    return Times(grid[path], grid[s])


def continuous_times(
    n: int,
    solver_steps: int,
    span: float,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    rho: float = 7.0,
    *,
    s_from_u: bool = False,
    dtype: torch.dtype | None = None,
    generator: torch.Generator | None = None,
) -> Times:
    """Times with real-valued Karras coordinates (sony/ctm, continuous variant): ξ_t uniform on [0, 1 − span], ξ_u = ξ_t +
    span, ξ_s uniform on [ξ_u, 1]. The solver walks t → u in solver_steps equal steps of the coordinate.

    span: in (0, 1], one draw for the whole batch (`draw_span`; U(0, M/N) in the official code). Returns Times of n samples
    on the generator's device. Raises ValueError for span outside (0, 1], and for a dtype of whole numbers."""
    if not 0 < span <= 1:
        raise ValueError(
            f"span must be in (0, 1], got {span}: it is the part of the Karras coordinate the solver walks"
        )
    dtype = _float_type(dtype)
    device = generator.device if generator is not None else None
    draws = torch.rand(2, n, generator=generator, dtype=torch.float64, device=device)
    start = draws[0] * (1 - span)
    end = start + span
    s = end if s_from_u else end + draws[1] * (1 - end)
    walk = torch.linspace(0, 1, solver_steps + 1, dtype=torch.float64, device=device)[:, None]
    levels = karras_level(torch.cat([start + walk * span, s[None]]).clamp(max=1), sigma_min, sigma_max, rho)
    levels = levels.clamp(sigma_min, sigma_max).to(dtype)
    return Times(levels[:-1], torch.minimum(levels[-1], levels[-2]))  # rounding must not lift s above u


def lognormal(
    n: int,
    *,
    mean: float = -1.2,
    std: float = 1.2,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """n noise levels with ln σ ~ N(mean, std²): the training levels of EDM (arXiv 2206.00364, table 1). The bounds are not
    applied, because EDM has none.

    Returns (n,) on the generator's device."""
    device = generator.device if generator is not None else None
    return lognormal_levels(torch.randn(n, generator=generator, device=device), mean, std)


def lognormal_levels(z: Tensor, mean: float = -1.2, std: float = 1.2) -> Tensor:
    """σ = exp(mean + std·z), for z standard normal of any shape."""
    return (mean + std * z).exp()


def half_lognormal(
    n: int,
    *,
    mean: float = -1.2,
    std: float = 1.2,
    high: float = 0.7,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    rho: float = 7.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """n noise levels: the first n//2 log-normal(mean, std), the rest uniform in the Karras coordinate on [0, high], the
    high-noise part (sony/ctm, cm/karras_diffusion.py: 'halflognormal', high = 0.7).

    Returns (n,) on the generator's device."""
    device = generator.device if generator is not None else None
    z = torch.randn(n // 2, generator=generator, device=device)
    u = torch.rand(n - n // 2, generator=generator, device=device)
    return half_lognormal_levels(z, u, mean, std, high, sigma_min, sigma_max, rho)


def half_lognormal_levels(
    z: Tensor,
    u: Tensor,
    mean: float = -1.2,
    std: float = 1.2,
    high: float = 0.7,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    rho: float = 7.0,
) -> Tensor:
    """The levels (A + C,) of `half_lognormal`, from z (A,) standard normal and u (C,) uniform in [0, 1): exp(mean + std·z),
    then the levels at the Karras coordinates high·u."""
    return torch.cat([lognormal_levels(z, mean, std), karras_level(high * u, sigma_min, sigma_max, rho)])
