"""Training: recipes, the loop, run directories. No maths of the method lives here."""

from ctm.training.ema import Average, Decay, PowerFunction
from ctm.training.engine import EngineSettings
from ctm.training.recipe import DataSettings, Recipe
from ctm.training.schedules import Doubling, Progressive
from ctm.training.trainer import train

__all__ = [
    "Average",
    "DataSettings",
    "Decay",
    "Doubling",
    "EngineSettings",
    "PowerFunction",
    "Progressive",
    "Recipe",
    "train",
]
