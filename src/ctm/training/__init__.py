"""Training: recipes, the loop, run directories. No maths of the method lives here."""

from ctm.training.dry_run import dry_run
from ctm.training.ema import Average, Decay, PowerFunction
from ctm.training.engine import EngineSettings
from ctm.training.guard import TrainingDiverged
from ctm.training.network_checks import check_network
from ctm.training.recipe import DataSettings, Recipe
from ctm.training.run_directory import CannotWrite
from ctm.training.schedules import Doubling, Progressive
from ctm.training.trainer import train

__all__ = [
    "Average",
    "CannotWrite",
    "DataSettings",
    "Decay",
    "Doubling",
    "EngineSettings",
    "PowerFunction",
    "Progressive",
    "Recipe",
    "TrainingDiverged",
    "check_network",
    "dry_run",
    "train",
]
