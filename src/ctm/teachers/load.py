"""Any source of a teacher to one interface."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from ctm.model import load_model

__all__ = ["load_teacher"]


def load_teacher(source: str | Path) -> nn.Module:
    """A frozen model in eval mode with denoise, score, shape, num_classes, sigma_min, sigma_max and sigma_data.

    source: a model directory, a run directory (its model/) or a hub id; a CTM may teach too. Raises FileNotFoundError and
    ValueError as `ctm.load_model`."""
    return load_model(source).requires_grad_(False)
