"""Consistency Trajectory Models: one network that jumps anywhere along the probability-flow ODE."""

from ctm import editing, guidance, likelihood, objectives, sampling, teachers
from ctm.models import ConsistencyModel, DiffusionModel, TrajectoryModel, load_model
from ctm.noise import karras_grid
from ctm.sampling import Cancelled, generate, tune_grid
from ctm.teachers import load_teacher
from ctm.version import __version__ as __version__

__all__ = [
    "Cancelled",
    "ConsistencyModel",
    "DiffusionModel",
    "TrajectoryModel",
    "editing",
    "generate",
    "guidance",
    "karras_grid",
    "likelihood",
    "load_model",
    "load_teacher",
    "objectives",
    "sampling",
    "teachers",
    "tune_grid",
]
