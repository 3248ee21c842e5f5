"""The models: TrajectoryModel jumps anywhere, ConsistencyModel to the end, DiffusionModel only denoises."""

from ctm.models.consistency import ConsistencyModel
from ctm.models.diffusion import DiffusionModel
from ctm.models.files import AnyModel, load_model
from ctm.models.trajectory import TrajectoryModel

__all__ = ["AnyModel", "ConsistencyModel", "DiffusionModel", "TrajectoryModel", "load_model"]
