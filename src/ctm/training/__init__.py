"""Training: recipes, the loop, run directories. No maths of the method lives here."""

from ctm.training.dry_run import dry_run
from ctm.training.guard import TrainingDiverged
from ctm.training.recipe import DataSettings, Recipe
from ctm.training.run_directory import CannotWrite
from ctm.training.trainer import train

__all__ = ["CannotWrite", "DataSettings", "Recipe", "TrainingDiverged", "dry_run", "train"]
