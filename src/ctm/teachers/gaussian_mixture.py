"""A mixture of Gaussians as a model with known score, density and flow: the truth that tests compare with."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ctm.arguments import as_count, as_levels, as_number, as_seed, as_state
from ctm.conditioner import Conditioner, Labels
from ctm.conditions import Condition, as_condition, labels_of, takes_labels
from ctm.noise import match_dims

__all__ = ["GaussianMixture"]


class GaussianMixture(nn.Module):
    """Data ~ Σ_k w_k N(μ_k, c²·I): `denoise`, `score`, `jump`, `log_prob` and `sample`, all exact.

    means (K, *shape); std: c > 0, one number; weights (K,) non-negative, normalised here. labels[i] ≥ 0 conditions
    sample i on that component, −1 or None on none. Raises ValueError for unfitting shapes and values.
    Attributes as of any model: shape, num_classes = K, sigma_min, sigma_max, and sigma_data, the data's standard deviation
    over all coordinates.
    """

    means: Tensor
    weights: Tensor

    def __init__(
        self, means: Tensor, std: float, weights: Tensor, *, sigma_min: float = 0.002, sigma_max: float = 80.0
    ) -> None:
        super().__init__()
        means, weights = torch.as_tensor(means), torch.as_tensor(weights)
        if means.dim() < 2 or weights.shape != means.shape[:1]:
            raise ValueError(
                f"means must be (K, *shape) and weights (K,), got {tuple(means.shape)} and {tuple(weights.shape)}"
            )
        std = as_number(std, "std", 0, above=True, why="the flow is not defined for points")
        if bool((weights < 0).any()) or not float(weights.sum()) > 0:
            raise ValueError(f"weights must be non-negative with a positive sum, got {weights.tolist()}")
        self.register_buffer("means", means if means.is_floating_point() else means.float())
        self.register_buffer("weights", weights / weights.sum())
        self.std = float(std)
        self.shape = tuple(means.shape[1:])
        self.num_classes = len(means)
        self.sigma_min, self.sigma_max = sigma_min, sigma_max
        centre = (self.weights.double() @ self.means.double().flatten(1)).reshape(self.shape)
        spread = self.weights.double() @ (self.means.double() - centre).square().flatten(1).mean(1)
        self.sigma_data = math.sqrt(self.std**2 + float(spread))

    def _logits(self, x: Tensor, variance: Tensor, labels: Tensor | None) -> Tensor:
        """(B, K): ln w_k − |x − μ_k|²/(2v), without the |x|² that all share, and −∞ for components other than a given label."""
        means, weights = self.means.to(x).flatten(1), self.weights.to(x)
        inner = x.flatten(1) @ means.T - means.square().sum(1) / 2
        logits = weights.log() + inner / variance.reshape(-1, 1)
        if labels is None:
            return logits
        self._check_labels(labels)
        other = torch.arange(len(weights), device=x.device) != labels[:, None]
        return logits.masked_fill(other & (labels >= 0)[:, None], -math.inf)

    @property
    def conditioner(self) -> Conditioner:
        """The components as labels."""
        return Labels(self.num_classes)

    def _checked(self, x: Tensor, t: Tensor | float, condition: object) -> tuple[Tensor, Tensor | None]:
        """Levels (B,) in x's dtype and labels int64 (B,) or None. Raises ValueError for what does not fit."""
        if tuple(as_state(x).shape[1:]) != self.shape:
            raise ValueError(f"x must have shape (B, {', '.join(map(str, self.shape))}), got {tuple(x.shape)}")
        return as_levels(t, x, zero=True).to(x.dtype), labels_of(as_condition(condition, x))

    def _check_labels(self, labels: Tensor) -> None:
        """Raises ValueError for a component that does not exist."""
        if len(labels) and not -1 <= int(labels.min()) <= int(labels.max()) < self.num_classes:
            raise ValueError(
                f"labels must be components 0 … {self.num_classes - 1}, or −1 for none, "
                f"got {int(labels.min())} … {int(labels.max())}"
            )

    def _posterior_mean(self, x: Tensor, variance: Tensor, labels: Tensor | None) -> Tensor:
        """Σ_k p_k μ_k with p = softmax_k(logits), like x; variance (B,) is c² + t²."""
        p = self._logits(x, variance, labels).softmax(dim=1)
        return (p @ self.means.to(x).flatten(1)).reshape(x.shape)

    @takes_labels
    def forward(self, x: Tensor, t: Tensor, condition: Condition = None) -> Tensor:
        """Calling a model means denoise."""
        return self.denoise(x, t, condition)

    @takes_labels
    def denoise(self, x: Tensor, t: Tensor, condition: Condition = None) -> Tensor:
        """E[x_0 | x_t = x] = (c²·x + t²·Σ p_k μ_k)/(c² + t²). x (B, *shape), t (B,) ≥ 0 -> like x, in x's dtype."""
        t, labels = self._checked(x, t, condition)
        variance = t**2 + self.std**2
        mean = self._posterior_mean(x, variance, labels)
        return x + match_dims(t**2 / variance, x) * (mean - x)

    @takes_labels
    def score(self, x: Tensor, t: Tensor, condition: Condition = None) -> Tensor:
        """∇ log p_t(x) = (Σ p_k μ_k − x)/(c² + t²); t = 0 is allowed. Shapes as in `denoise`."""
        t, labels = self._checked(x, t, condition)
        variance = t**2 + self.std**2
        return (self._posterior_mean(x, variance, labels) - x) / match_dims(variance, x)

    @takes_labels
    @torch.no_grad()
    def jump(self, x: Tensor, t: Tensor, s: Tensor, condition: Condition = None) -> Tensor:
        """The exact flow from level t to level s (any order, 0 allowed), like x. Shapes as in `denoise`.

        With r = ½·ln(t² + c²) and y = e^(−r)·x the flow is dy/dr = −e^(−r)·Σ p_k μ_k. A known component (one alone, or a
        label) keeps p constant: x_s = μ + (x − μ)·√((s²+c²)/(t²+c²)). The other samples are integrated in float64 by an
        adaptive eighth-order method to 1e-9 (on the CPU where the device has no float64).
        """
        t, labels = self._checked(x, t, condition)
        s = as_levels(s, x, "s", zero=True)
        if labels is not None:
            self._check_labels(labels)
        device = x.device if x.device.type != "mps" else torch.device("cpu")
        state, t, s = (tensor.to(device=device, dtype=torch.float64) for tensor in (x, t, s))
        labels = torch.full((len(x),), -1, device=device) if labels is None else labels.to(device)
        if self.num_classes == 1:
            labels = torch.zeros_like(labels)
        start, stop = ((level**2 + self.std**2).log() / 2 for level in (t, s))
        means = self.means.to(device=device, dtype=torch.float64)[labels.clamp(min=0)]
        result = means + (state - means) * match_dims((stop - start).exp(), state)
        free = (labels < 0) & (start != stop)
        if bool(free.any()):
            result[free] = self._integrate(state[free], start[free], stop[free])
        result = torch.where(match_dims(t == s, state).bool(), state, result)
        return result.to(device=x.device, dtype=x.dtype)

    def _integrate(self, x: Tensor, start: Tensor, stop: Tensor) -> Tensor:
        """The flow of unlabelled samples from r = start to r = stop (each (B,)), all on one clock in [0, 1]."""
        from torchdiffeq import odeint  # here, because it brings scipy, which no sampler needs

        span = stop - start

        def slope(clock: Tensor, y: Tensor) -> Tensor:
            r = start + clock * span
            mean = self._posterior_mean(y * match_dims(r.exp(), y), (2 * r).exp(), None)
            return -match_dims(span * (-r).exp(), y) * mean

        y = x * match_dims((-start).exp(), x)
        clock = torch.tensor([0.0, 1.0], dtype=torch.float64, device=x.device)
        # every sample within the tolerance, not their mean; and a step that ends at 1, as the solver would interpolate
        options = {"norm": lambda error: error.abs().max(), "step_t": clock[1:]}
        y = odeint(slope, y, clock, rtol=1e-10, atol=1e-11, method="dopri8", options=options)[-1]
        return y * match_dims(stop.exp(), x)

    def log_prob(self, x: Tensor, sigma: float | Tensor = 0.0) -> Tensor:
        """ln density, in nats, of the mixture blurred by N(0, sigma²·I). x (B, *shape); sigma ≥ 0, a number or (B,).

        Returns (B,)."""
        level, _ = self._checked(x, sigma, None)
        variance = level**2 + self.std**2
        size = math.prod(self.shape)
        common = x.flatten(1).square().sum(1) / (2 * variance) + size / 2 * (2 * math.pi * variance).log()
        return self._logits(x, variance, None).logsumexp(dim=1) - common

    def sample(self, n: int, seed: int = 0) -> Tensor:
        """n draws of the data (n, *shape), in the means' dtype, the same for the same seed on any device."""
        n, generator = as_count(n, "n", 0), torch.Generator().manual_seed(as_seed(seed))
        if n == 0:
            return self.means[:0]
        k = torch.multinomial(self.weights.double().cpu(), n, replacement=True, generator=generator)
        noise = torch.randn(n, *self.shape, dtype=self.means.dtype, generator=generator).to(self.means.device)
        return self.means[k.to(self.means.device)] + self.std * noise
