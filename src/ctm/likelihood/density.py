"""The log density and bits per dimension of samples, with what the estimate cost and how sure it is."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ctm.arguments import as_count, as_seed, as_state, words_for
from ctm.conditions import Condition, as_condition, takes_labels
from ctm.likelihood.flow import exact_trace, hutchinson_trace, integrate_flow, log_prior, solver_precision
from ctm.models.protocol import Model, denoiser_of
from ctm.sampling.common import tensors_of
from ctm.sampling.image_noise import DEQUANTISATION, PROBE, image_generator

__all__ = ["Estimate", "bits_per_dim", "estimate_bits_per_dim", "estimate_log_density", "log_density"]

TraceKind = Literal["hutchinson", "exact"]
ProbeKind = Literal["rademacher", "gaussian"]


@dataclass(frozen=True)
class Estimate:
    """value (B,) float64, or float32 where the device of x has no float64; standard_error (B,) of the value by the scatter of
    the probes: 0 for the exact trace, NaN for one probe, which shows no scatter; evaluations: calls of the denoiser, each with a
    backward pass for every probe, or coordinate.
    """

    value: Tensor
    standard_error: Tensor
    evaluations: int


def _probes(x: Tensor, probes: int, kind: ProbeKind, seed: int, first: int) -> Tensor:
    """(probes, B, …) of ±1 or standard normal, the probes of sample i from (seed, first + i) alone."""
    shape = (probes, *x.shape[1:])
    generators = [image_generator(seed, first + i, PROBE) for i in range(len(x))]
    if kind == "gaussian":
        return torch.stack([torch.randn(shape, generator=generator) for generator in generators], dim=1).to(x)
    rows = [torch.randint(0, 2, shape, generator=generator) for generator in generators]
    return (2 * torch.stack(rows, dim=1) - 1).to(x)


@takes_labels
def estimate_log_density(
    model: Model,
    x: Tensor,
    condition: Condition = None,
    *,
    trace: TraceKind = "hutchinson",
    probes: int = 1,
    probe: ProbeKind = "rademacher",
    rtol: float = 1e-5,
    atol: float = 1e-5,
    seed: int = 0,
    first: int = 0,
) -> Estimate:
    """ln p(x) in nats, p the model's density at its sigma_min, as an `Estimate`.

    model: anything with `denoise` (and sigma_min, sigma_max; 0.002 and 80 where it has none). x (B, *shape) float;
    condition: of the B samples, or None. trace: "exact" takes one backward pass a coordinate, "hutchinson" one a probe,
    unbiased, with `probes` vectors of ±1 ("rademacher") or of standard normals ("gaussian", of larger variance), drawn
    from (seed, first + i) for sample i. rtol, atol: the solver's tolerances. Raises ValueError for another trace
    or probe, for no probe, and for x that is not floating point.
    """
    if trace not in ("hutchinson", "exact"):
        raise ValueError(f"trace must be hutchinson or exact, got {trace!r}")
    if probe not in ("rademacher", "gaussian"):
        raise ValueError(f"probe must be rademacher or gaussian, got {probe!r}")
    probes, seed, first = as_count(probes, "probes"), as_seed(seed), as_count(first, "first", 0)
    if isinstance(x, Tensor) and x.dtype == torch.uint8:
        raise ValueError("x must be floating point at the model's scale, got uint8: bits_per_dim takes uint8 images")
    condition = as_condition(condition, as_state(x))
    if len(x) == 0:
        nothing = x.new_zeros(0, dtype=solver_precision(x.device))
        return Estimate(nothing, nothing, 0)
    exact = trace == "exact"
    method = exact_trace if exact else hutchinson_trace(_probes(x, probes, probe, seed, first), each=True)
    sigma_min, sigma_max = getattr(model, "sigma_min", 0.002), getattr(model, "sigma_max", 80.0)
    done = integrate_flow(
        denoiser_of(model, condition),
        x,
        sigma_min,
        sigma_max,
        method,
        traces=1 if exact else probes,
        rtol=rtol,
        atol=atol,
    )
    value = log_prior(done.x, sigma_max) + done.gained.mean(dim=1)
    error = torch.zeros_like(value) if exact else torch.full_like(value, math.nan)
    if not exact and probes > 1:
        error = done.gained.std(dim=1) / math.sqrt(probes)
    return Estimate(value, error, done.evaluations)


@takes_labels
def log_density(
    model: Model,
    x: Tensor,
    condition: Condition = None,
    *,
    trace: TraceKind = "hutchinson",
    probes: int = 1,
    probe: ProbeKind = "rademacher",
    rtol: float = 1e-5,
    atol: float = 1e-5,
    seed: int = 0,
) -> Tensor:
    """The value of `estimate_log_density`, (B,) float64 nats. Arguments as there."""
    return estimate_log_density(
        model, x, condition, trace=trace, probes=probes, probe=probe, rtol=rtol, atol=atol, seed=seed
    ).value


@takes_labels
def estimate_bits_per_dim(
    model: Model,
    images_uint8: Tensor,
    condition: Condition = None,
    *,
    trace: TraceKind = "hutchinson",
    probes: int = 1,
    probe: ProbeKind = "rademacher",
    rtol: float = 1e-5,
    atol: float = 1e-5,
    seed: int = 0,
    first: int = 0,
) -> Estimate:
    """Bits per dimension of images, uniformly dequantised: 7 − log2 p(x)/n with x = (v + u)/128 − 1 and u uniform in [0, 1)
    drawn from (seed, first + i) for image i. As an `Estimate`, value and standard error in bits per dimension.

    images_uint8 (B, C, H, W) uint8; other arguments as in `estimate_log_density`. Computed where the model's weights are, in
    their precision (float32 for a model without any). Raises ValueError for images that are not uint8."""
    if not isinstance(images_uint8, Tensor) or images_uint8.dtype != torch.uint8:
        raise ValueError(
            f"images must be a tensor of uint8 in 0 … 255, got {words_for(images_uint8)}: log_density takes floats"
        )
    seed, first = as_seed(seed), as_count(first, "first", 0)
    if len(images_uint8) == 0:
        return Estimate(torch.zeros(0, dtype=torch.float64), torch.zeros(0, dtype=torch.float64), 0)
    rows = [
        torch.rand(images_uint8.shape[1:], generator=image_generator(seed, first + i, DEQUANTISATION))
        for i in range(len(images_uint8))
    ]
    weights = next((tensor for tensor in tensors_of(model) if tensor.is_floating_point()), None)
    x = (images_uint8.cpu().double() + torch.stack(rows)) / 128 - 1
    x = x.float() if weights is None else x.to(device=weights.device, dtype=weights.dtype)
    nats = estimate_log_density(
        model, x, condition, trace=trace, probes=probes, probe=probe, rtol=rtol, atol=atol, seed=seed, first=first
    )
    unit = math.log(2) * x[0].numel()
    return Estimate(7 - nats.value / unit, nats.standard_error / unit, nats.evaluations)


@takes_labels
def bits_per_dim(
    model: Model,
    images_uint8: Tensor,
    condition: Condition = None,
    *,
    trace: TraceKind = "hutchinson",
    probes: int = 1,
    probe: ProbeKind = "rademacher",
    rtol: float = 1e-5,
    atol: float = 1e-5,
    seed: int = 0,
) -> Tensor:
    """The value of `estimate_bits_per_dim`, (B,) float64. Arguments as there."""
    return estimate_bits_per_dim(
        model, images_uint8, condition, trace=trace, probes=probes, probe=probe, rtol=rtol, atol=atol, seed=seed
    ).value
