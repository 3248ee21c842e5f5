"""Editing given images with a model: linear inverse problems, denoising, strokes, interpolation, variations."""

from ctm.editing.changes import denoise, interpolate, posterior_sample, spherical, stroke, stroking, variations
from ctm.editing.inverse import Measured, into_range, replace, replacing, restoring_levels, solve_guided
from ctm.editing.operators import LinearOperator, averaging, greying, masking

__all__ = [
    "LinearOperator",
    "Measured",
    "averaging",
    "denoise",
    "greying",
    "interpolate",
    "into_range",
    "masking",
    "posterior_sample",
    "replace",
    "replacing",
    "restoring_levels",
    "solve_guided",
    "spherical",
    "stroke",
    "stroking",
    "variations",
]
