"""The density of a model, by the probability-flow ODE and the change of variables (arXiv 2011.13456, appendix D): log density,
bits per dimension, bounds, and the way from data to noise and back."""

from ctm.likelihood.bounds import elbo, residual
from ctm.likelihood.coding import decode, encode, grid_log_density
from ctm.likelihood.density import (
    Estimate,
    bits_per_dim,
    estimate_bits_per_dim,
    estimate_log_density,
    log_density,
)
from ctm.likelihood.flow import exact_trace, flow_log_density, hutchinson_trace, probability_flow

__all__ = [
    "Estimate",
    "bits_per_dim",
    "decode",
    "elbo",
    "encode",
    "estimate_bits_per_dim",
    "estimate_log_density",
    "exact_trace",
    "flow_log_density",
    "grid_log_density",
    "hutchinson_trace",
    "log_density",
    "probability_flow",
    "residual",
]
