"""The density of a model, by the probability-flow ODE and the change of variables (arXiv 2011.13456, appendix D).

From sigma_min to sigma_max the state follows dx/dσ = (x − D(x, σ))/σ, and the log density along it changes by −div:

    ln p(x) = ln N(x_T; 0, σ_max²·I) + ∫ div dσ,     div = (n − tr ∂D/∂x)/σ for n coordinates.

The clock τ in [0, 1] is the Karras coordinate from the other end: σ(τ) = (m^(1/ρ) + τ·(M^(1/ρ) − m^(1/ρ)))^ρ, σ(0) = m.
x is (B, …), at level sigma_min unless said otherwise; results are (B,) in nats unless they are bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ctm.arguments import as_number
from ctm.noise import karras_level, match_dims
from ctm.solvers import DenoisingFunction

__all__ = [
    "Integral",
    "Trace",
    "exact_trace",
    "flow_log_density",
    "hutchinson_trace",
    "integrate_flow",
    "log_prior",
    "probability_flow",
    "solver_precision",
]

Trace = Callable[[DenoisingFunction, Tensor, Tensor], tuple[Tensor, Tensor]]
RHO = 7.0
WITHOUT_FLOAT64 = frozenset({"mps"})  # kinds of devices


def solver_precision(device: torch.device) -> torch.dtype:
    """In which the flow is integrated: float64, or float32 on a device that has none."""
    return torch.float32 if device.type in WITHOUT_FLOAT64 else torch.float64


def exact_trace(denoise: DenoisingFunction, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
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


def hutchinson_trace(probes: Tensor, *, each: bool = False) -> Trace:
    """The trace as the mean of εᵀ(∂D/∂x)ε over probes ε, P of them: probes (P, B, …) with independent coordinates of mean 0
    and variance 1, kept along the whole path. Returns a function like `exact_trace`, with one backward pass a probe; where
    `each` is true its trace is (B, P), one for each probe, not their mean."""

    def trace(denoise: DenoisingFunction, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            denoised = denoise(x, sigma)
            products = [
                (torch.autograd.grad(denoised, x, probe, retain_graph=True)[0] * probe).flatten(1).sum(dim=1)
                for probe in probes.to(x)
            ]
        traces = torch.stack(products, dim=1).detach()
        return denoised.detach(), traces if each else traces.mean(dim=1)

    return trace


def probability_flow(
    denoise: DenoisingFunction,
    x: Tensor,
    tau: Tensor,
    sigma_min: float,
    sigma_max: float,
    trace: Trace,
    rho: float = RHO,
) -> tuple[Tensor, Tensor]:
    """The drift dx/dτ of the flow, like x, and its divergence, like the trace, at clocks tau (B,) (sony/ctm, eval_bpd.py).

    dx/dτ = σ'(τ)·(x − D(x, σ))/σ,    div = σ'(τ)·(n − tr ∂D/∂x)/σ,    σ'(τ) = ρ·σ^(1−1/ρ)·(M^(1/ρ) − m^(1/ρ))
    """
    sigma = karras_level(1 - tau, sigma_min, sigma_max, rho)
    rate = rho * sigma ** (-1 / rho) * (sigma_max ** (1 / rho) - sigma_min ** (1 / rho))  # σ'/σ
    denoised, traced = trace(denoise, x, sigma)
    return match_dims(rate, x) * (x - denoised), match_dims(rate, traced) * (x[0].numel() - traced)


def log_prior(x: Tensor, sigma_max: float) -> Tensor:
    """ln N(x; 0, σ_max²·I), (B,)."""
    return -(x.flatten(1).square().sum(dim=1) / sigma_max**2 + x[0].numel() * math.log(2 * math.pi * sigma_max**2)) / 2


@dataclass(frozen=True)
class Integral:
    """Where the flow ended: x (B, n) in the solver's precision; gained (B, P), ∫ div along the way for each of P traces;
    evaluations of the denoiser (each with the trace's backward passes)."""

    x: Tensor
    gained: Tensor
    evaluations: int


def integrate_flow(
    denoise: DenoisingFunction,
    x: Tensor,
    sigma_min: float,
    sigma_max: float,
    trace: Trace | None,
    *,
    traces: int = 1,
    down: bool = False,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    progress: Callable[[float], object] | None = None,
) -> Integral:
    """The flow from sigma_min up to sigma_max (or down from there) by dopri5, to the tolerances in every sample.

    traces: how many the trace gives for each sample. trace None integrates no divergence: `gained` is then (B, 0). State and
    divergence are float64 (float32 where the device has no float64); `denoise` sees x's own dtype. progress(share) is called at
    each evaluation with the share of the way done, in [0, 1]; it may fall where the solver takes a step again."""
    rtol, atol = as_number(rtol, "rtol", 0, above=True), as_number(atol, "atol", 0, above=True)
    from torchdiffeq import odeint  # here, because it brings scipy, which little else needs

    precision = solver_precision(x.device)
    size, evaluations = x[0].numel(), 0

    def slope(clock: Tensor, state: Tensor) -> Tensor:
        nonlocal evaluations
        evaluations += 1
        if progress is not None:
            progress(float(clock))
        at = state[:, :size].reshape(x.shape).to(x.dtype)
        tau = ((1 - clock) if down else clock).expand(len(x)).to(x.dtype)
        parts = probability_flow(
            lambda y, s: denoise(y, s.to(x.dtype)), at, tau, sigma_min, sigma_max, trace or _no_trace
        )
        rates = torch.cat([part.reshape(len(x), -1) for part in parts], dim=1).to(precision)
        return -rates if down else rates

    def worst(error: Tensor) -> Tensor:
        """The largest over samples of the root mean square of the state's errors, and of the density's."""
        of_state = error[:, :size].square().mean(dim=1).max().sqrt()
        return of_state if error.shape[1] == size else torch.maximum(of_state, error[:, size:].abs().max())

    with torch.no_grad():
        start = torch.cat([x.flatten(1), x.new_zeros(len(x), traces if trace else 0)], dim=1).to(precision)
        clock = torch.tensor([0.0, 1.0], dtype=precision, device=x.device)
        # dtype: the solver's clock is float64 else; step_t: a step that ends at 1, where the solver would interpolate
        options = {"norm": worst, "dtype": precision, "step_t": clock[1:]}
        end = odeint(slope, start, clock, rtol=rtol, atol=atol, method="dopri5", options=options)[-1]
    return Integral(end[:, :size], end[:, size:], evaluations)


def _no_trace(denoise: DenoisingFunction, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """A trace that is not asked for."""
    return denoise(x, sigma), x.new_zeros(len(x), 0)


def flow_log_density(
    denoise: DenoisingFunction,
    x: Tensor,
    sigma_min: float,
    sigma_max: float,
    trace: Trace,
    *,
    rtol: float = 1e-5,
    atol: float = 1e-5,
) -> Tensor:
    """ln of the density at level sigma_min at x, as the flow of `denoise` up to N(0, sigma_max²·I) gives it: (B,) float64.

    Integrated as in `integrate_flow`; of several traces the mean."""
    done = integrate_flow(denoise, x, sigma_min, sigma_max, trace, rtol=rtol, atol=atol)
    return log_prior(done.x, sigma_max) + done.gained.mean(dim=1)
