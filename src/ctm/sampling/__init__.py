"""Samplers: each is f(model, x, grid, *, condition=None, noise=None, callback=None, …) -> x, and `generate` around them.

x is *at* level grid[0] (draw grid[0]·ε), the result at grid[-1]. A final 0 in the grid is allowed for the samplers that
use only `denoise`.
"""

from ctm.sampling.common import Cancelled, Step
from ctm.sampling.generation import class_labels, draw, generate, stream
from ctm.sampling.image_noise import starting_noise
from ctm.sampling.jumps import consistency, gamma, gamma_plan, jump_to_many, two_level
from ctm.sampling.ode import dpmpp_2m, euler, heun, midpoint
from ctm.sampling.replacement import Projection, restore
from ctm.sampling.sde import ancestral, dpmpp_2m_sde
from ctm.sampling.tuning import FlowDistance, GridMeasure, tune_grid

__all__ = [
    "Cancelled",
    "FlowDistance",
    "GridMeasure",
    "Projection",
    "Step",
    "ancestral",
    "class_labels",
    "consistency",
    "dpmpp_2m",
    "dpmpp_2m_sde",
    "draw",
    "euler",
    "gamma",
    "gamma_plan",
    "generate",
    "heun",
    "jump_to_many",
    "midpoint",
    "restore",
    "starting_noise",
    "stream",
    "tune_grid",
    "two_level",
]
