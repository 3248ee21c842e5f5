"""The density of a model, by the probability-flow ODE and the change of variables (arXiv 2011.13456, appendix D).

From sigma_min to sigma_max the state follows dx/dσ = (x − D(x, σ))/σ, and the log density along it changes by −div:

    ln p(x) = ln N(x_T; 0, σ_max²·I) + ∫ div dσ,     div = (n − tr ∂D/∂x)/σ for n coordinates.

The clock τ in [0, 1] is the Karras coordinate from the other end: σ(τ) = (m^(1/ρ) + τ·(M^(1/ρ) − m^(1/ρ)))^ρ, σ(0) = m.
x is (B, …), at level sigma_min unless said otherwise; results are (B,) in nats unless they are bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from ctm.noise import karras_level, match_dims
from ctm.sampling.common import denoiser_of
from ctm.sampling.generation import DEQUANTISATION, PROBE, image_generator
from ctm.solvers import Denoise

__all__ = [
    "bits_per_dim",
    "elbo",
    "exact_trace",
    "flow_log_density",
    "hutchinson_trace",
    "log_density",
    "probability_flow",
    "residual",
]

Trace = Callable[[Denoise, Tensor, Tensor], tuple[Tensor, Tensor]]
RHO = 7.0


def exact_trace(denoise: Denoise, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """(D(x, σ), tr ∂D/∂x (B,)), with one backward pass for each coordinate of x."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        denoised = denoise(x, sigma)
        columns = denoised.flatten(1)
        trace = torch.zeros(len(x), dtype=x.dtype, device=x.device)
        for index in range(columns.shape[1]):
            gradient = torch.autograd.grad(columns[:, index].sum(), x, retain_graph=True)[0]
            trace = trace + gradient.flatten(1)[:, index]
    return denoised.detach(), trace.detach()


def hutchinson_trace(probes: Tensor) -> Trace:
    """The trace as the mean of εᵀ(∂D/∂x)ε over probes ε, P of them: probes (P, B, …) with independent coordinates of mean 0
    and variance 1, kept along the whole path. Returns a function like `exact_trace`, with one backward pass a probe."""

    def trace(denoise: Denoise, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            denoised = denoise(x, sigma)
            products = [
                (torch.autograd.grad(denoised, x, probe, retain_graph=True)[0] * probe).flatten(1).sum(dim=1)
                for probe in probes.to(x)
            ]
        return denoised.detach(), torch.stack(products).mean(dim=0).detach()

    return trace


def probability_flow(
    denoise: Denoise, x: Tensor, tau: Tensor, sigma_min: float, sigma_max: float, trace: Trace, rho: float = RHO
) -> tuple[Tensor, Tensor]:
    """The drift dx/dτ of the flow, like x, and its divergence (B,), at clocks tau (B,) (sony/ctm, eval_bpd.py).

    dx/dτ = σ'(τ)·(x − D(x, σ))/σ,    div = σ'(τ)·(n − tr ∂D/∂x)/σ,    σ'(τ) = ρ·σ^(1−1/ρ)·(M^(1/ρ) − m^(1/ρ))
    """
    sigma = karras_level(1 - tau, sigma_min, sigma_max, rho)
    rate = rho * sigma ** (-1 / rho) * (sigma_max ** (1 / rho) - sigma_min ** (1 / rho))  # σ'/σ
    denoised, traced = trace(denoise, x, sigma)
    return match_dims(rate, x) * (x - denoised), rate * (x[0].numel() - traced)


def _prior(x: Tensor, sigma_max: float) -> Tensor:
    """ln N(x; 0, σ_max²·I), (B,)."""
    return -(x.flatten(1).square().sum(dim=1) / sigma_max**2 + x[0].numel() * math.log(2 * math.pi * sigma_max**2)) / 2


def flow_log_density(
    denoise: Denoise,
    x: Tensor,
    sigma_min: float,
    sigma_max: float,
    trace: Trace,
    *,
    rtol: float = 1e-5,
    atol: float = 1e-5,
) -> Tensor:
    """ln of the density at level sigma_min at x, as the flow of `denoise` up to N(0, sigma_max²·I) gives it: (B,) float64.

    Integrated by dopri5 to the tolerances in every sample. State and density are float64 (float32 where the device has no
    float64); `denoise` sees x's own dtype."""
    from torchdiffeq import odeint  # here, because it brings scipy, which little else needs

    precision = torch.float32 if x.device.type == "mps" else torch.float64
    size = x[0].numel()

    def slope(tau: Tensor, state: Tensor) -> Tensor:
        at = state[:, :size].reshape(x.shape).to(x.dtype)
        clock = tau.expand(len(x)).to(precision)
        drift, divergence = probability_flow(
            lambda y, sigma: denoise(y, sigma.to(x.dtype)), at, clock.to(x.dtype), sigma_min, sigma_max, trace
        )
        return torch.cat([drift.flatten(1), divergence[:, None]], dim=1).to(precision)

    def worst(error: Tensor) -> Tensor:
        """The largest over samples of the root mean square of the state's errors, and of the density's."""
        return torch.maximum(error[:, :size].square().mean(dim=1).max().sqrt(), error[:, size].abs().max())

    start = torch.cat([x.flatten(1), x.new_zeros(len(x), 1)], dim=1).to(precision)
    clock = torch.tensor([0.0, 1.0], dtype=precision, device=x.device)
    options = {"norm": worst, "step_t": clock[1:]}  # a step that ends at 1: the solver would interpolate there
    with torch.no_grad():
        end = odeint(slope, start, clock, rtol=rtol, atol=atol, method="dopri5", options=options)[-1]
    return _prior(end[:, :size], sigma_max) + end[:, size]


def _probes(x: Tensor, probes: int, seed: int) -> Tensor:
    """(probes, B, …) of ±1, those of sample i from (seed, i) alone."""
    rows = [
        torch.randint(0, 2, (probes, *x.shape[1:]), generator=image_generator(seed, i, PROBE)) for i in range(len(x))
    ]
    return (2 * torch.stack(rows, dim=1) - 1).to(x)


def log_density(
    model: Any,
    x: Tensor,
    labels: Tensor | None = None,
    *,
    trace: Literal["hutchinson", "exact"] = "hutchinson",
    probes: int = 1,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    seed: int = 0,
) -> Tensor:
    """ln p(x) in nats, (B,) float64, p the model's density at its sigma_min.

    model: anything with `denoise` (and sigma_min, sigma_max; 0.002 and 80 where it has none). x (B, *shape) float; labels
    int64 (B,) or None. trace: "exact" takes one backward pass a coordinate, "hutchinson" one a probe, unbiased, with `probes`
    vectors of ±1 drawn from (seed, i) for sample i. rtol, atol: the solver's tolerances. Raises ValueError for another trace
    or no probe, and for x that is not floating point.
    """
    if trace not in ("hutchinson", "exact"):
        raise ValueError(f"trace must be hutchinson or exact, got {trace!r}")
    if probes < 1:
        raise ValueError(f"probes must be at least 1, got {probes}")
    if not x.is_floating_point():
        raise ValueError(
            f"x must be floating point at the model's scale, got {x.dtype}: bits_per_dim takes uint8 images"
        )
    if len(x) == 0:
        return x.new_zeros(0, dtype=torch.float64)
    method = exact_trace if trace == "exact" else hutchinson_trace(_probes(x, probes, seed))
    sigma_min, sigma_max = getattr(model, "sigma_min", 0.002), getattr(model, "sigma_max", 80.0)
    return flow_log_density(denoiser_of(model, labels), x, sigma_min, sigma_max, method, rtol=rtol, atol=atol)


def bits_per_dim(
    model: Any,
    images_uint8: Tensor,
    labels: Tensor | None = None,
    *,
    trace: Literal["hutchinson", "exact"] = "hutchinson",
    probes: int = 1,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    seed: int = 0,
) -> Tensor:
    """Bits per dimension of images, uniformly dequantised: 7 − log2 p(x)/n, (B,) float64, with x = (v + u)/128 − 1 and u
    uniform in [0, 1) drawn from (seed, i) for image i.

    images_uint8 (B, C, H, W) uint8; other arguments as in `log_density`. Computed where the model's weights are, in their
    precision (float32 for a model without any). Raises ValueError for images that are not uint8."""
    if images_uint8.dtype != torch.uint8:
        raise ValueError(f"images must be uint8 in 0 … 255, got {images_uint8.dtype}: log_density takes floats")
    if len(images_uint8) == 0:
        return torch.zeros(0, dtype=torch.float64)
    rows = [
        torch.rand(images_uint8.shape[1:], generator=image_generator(seed, i, DEQUANTISATION))
        for i in range(len(images_uint8))
    ]
    weights = next((p for p in model.parameters()), None) if isinstance(model, torch.nn.Module) else None
    x = (images_uint8.cpu().double() + torch.stack(rows)) / 128 - 1
    x = x.float() if weights is None else x.to(device=weights.device, dtype=weights.dtype)
    labels = None if labels is None else labels.to(x.device)
    nats = log_density(model, x, labels, trace=trace, probes=probes, rtol=rtol, atol=atol, seed=seed)
    return 7 - nats / (math.log(2) * x[0].numel())


def residual(denoise: Denoise, x: Tensor, sigma: Tensor, noise: Tensor) -> Tensor:
    """What separates the density of data from that at level σ: −ln p(x) ≤ E[−ln p_σ(x + σε)] + E[residual], (B,).

        residual = |x − D(x + σε, σ)|²/(2σ²) − n/2,   the cross-entropy of p(x | x_σ) = N(D, σ²·I) less that of x_σ given x

    sigma (B,); noise (B, …) standard normal (arXiv 2106.05527, appendix; sony/ctm, eval_bpd.py, where σ is wrongly σ^(1/7)).
    """
    error = x - denoise(x + match_dims(sigma, x) * noise, sigma)
    return error.flatten(1).square().sum(dim=1) / (2 * sigma**2) - x[0].numel() / 2


def elbo(
    denoise: Denoise,
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
    noisy = x + match_dims(sigma, x) * noise
    denoised, traced = trace(denoise, noisy, sigma)
    norm = (denoised - noisy).flatten(1).square().sum(dim=1) / sigma**2  # |σ·score|²
    integral = 2 * math.log(sigma_max / sigma_min) * (norm / 2 + traced - x[0].numel())
    return integral - _prior(x + sigma_max * end_noise, sigma_max)
