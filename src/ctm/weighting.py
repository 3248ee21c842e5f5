"""Weights of losses as functions of the noise levels: w(t, s, sigma_data) -> like t, for t and s of any one shape.

All have the same signature, so an objective takes any of them. Most depend on t only. The names are the official
repository's (sony/ctm, cm/karras_diffusion.py: get_weightings), which took them from consistency models (arXiv 2303.01469)."""

from __future__ import annotations

import torch
from torch import Tensor

from ctm.noise import edm_weight

__all__ = [
    "karras",
    "snr",
    "snr_plus_one",
    "sq_t_inverse",
    "truncated_snr",
    "uniform",
    "uniform_g",
]


def uniform(t: Tensor, s: Tensor, sigma_data: float) -> Tensor:
    """w = 1."""
    return torch.ones_like(t)


def snr(t: Tensor, s: Tensor, sigma_data: float) -> Tensor:
    """w = 1/t², the signal-to-noise ratio of unit data."""
    return t**-2


def snr_plus_one(t: Tensor, s: Tensor, sigma_data: float) -> Tensor:
    """w = 1/t² + 1 ('snr+1')."""
    return t**-2 + 1


def karras(t: Tensor, s: Tensor, sigma_data: float) -> Tensor:
    """w = 1/t² + 1/σ_d² ('karras'), which is EDM's denoising weight (t² + σ_d²)/(t·σ_d)² ('karras_weight')."""
    return edm_weight(t, sigma_data)


def truncated_snr(t: Tensor, s: Tensor, sigma_data: float) -> Tensor:
    """w = max(1/t², 1) ('truncated-snr')."""
    return (t**-2).clamp(min=1)


def sq_t_inverse(t: Tensor, s: Tensor, sigma_data: float) -> Tensor:
    """w = √t. The official repository calls it 'sq-t-inverse', although it grows with t."""
    return t.sqrt()


def uniform_g(t: Tensor, s: Tensor, sigma_data: float, power: float = 1.0) -> Tensor:
    """w = (1 − s/t)^(−power), s < t. It cancels the factor of g in the jump: with power 2, squared errors of g count the
    same for jumps of any length. Infinite where s = t."""
    return (1 - s / t) ** -power
