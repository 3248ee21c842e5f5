"""Bounds on the density of data by one draw of noise: the residual at sigma_min, and the variational bound."""

from __future__ import annotations

import math

from torch import Tensor

from ctm.arguments import as_levels, as_state
from ctm.likelihood.flow import Trace, log_prior
from ctm.noise import match_dims
from ctm.solvers import DenoisingFunction

__all__ = ["elbo", "residual"]


def residual(denoise: DenoisingFunction, x: Tensor, sigma: Tensor, noise: Tensor) -> Tensor:
    """What separates the density of data from that at level σ: −ln p(x) ≤ E[−ln p_σ(x + σε)] + E[residual], (B,).

        residual = |x − D(x + σε, σ)|²/(2σ²) − n/2,   the cross-entropy of p(x | x_σ) = N(D, σ²·I) less that of x_σ given x

    sigma (B,); noise (B, …) standard normal (arXiv 2106.05527, appendix; sony/ctm, eval_bpd.py, where σ is wrongly σ^(1/7)).
    """
    sigma = as_levels(sigma, as_state(x), "sigma")
    error = x - denoise(x + match_dims(sigma, x) * noise, sigma)
    return error.flatten(1).square().sum(dim=1) / (2 * sigma**2) - x[0].numel() / 2


def elbo(
    denoise: DenoisingFunction,
    x: Tensor,
    sigma_min: float,
    sigma_max: float,
    sigma: Tensor,
    noise: Tensor,
    end_noise: Tensor,
    trace: Trace,
) -> Tensor:
    """One draw of the bound on −ln p at level sigma_min, (B,) (arXiv 2101.09258, theorem 3, in its divergence form):

        −ln p(x) ≤ E[−ln N(x_T; 0, σ_max²)] + ∫ 2σ·(|score|²/2 + div score) dσ

    sigma (B,) log-uniform between sigma_min and sigma_max, sigma_min·(sigma_max/sigma_min)^u; noise and end_noise (B, …)
    standard normal: x_σ = x + σ·noise, x_T = x + sigma_max·end_noise. Add `residual` for a bound on data.
    """
    sigma = as_levels(sigma, as_state(x), "sigma")
    noisy = x + match_dims(sigma, x) * noise
    denoised, traced = trace(denoise, noisy, sigma)
    norm = (denoised - noisy).flatten(1).square().sum(dim=1) / sigma**2  # |σ·score|²
    integral = 2 * math.log(sigma_max / sigma_min) * (norm / 2 + traced - x[0].numel())
    return integral - log_prior(x + sigma_max * end_noise, sigma_max)
