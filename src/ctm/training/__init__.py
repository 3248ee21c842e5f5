"""Training: recipes, the loop, run directories. No maths of the method lives here."""

from ctm.training.recipe import DataSettings, Recipe
from ctm.training.schedules import Doubling, Progressive
from ctm.training.trainer import train

__all__ = ["DataSettings", "Doubling", "Progressive", "Recipe", "train"]
