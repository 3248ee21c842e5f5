"""Data sets: uint8 images, or arrays of any shape, with labels and fields of a condition."""

from ctm.data.base import Data, Dataset
from ctm.data.classes import listed_classes, match_classes
from ctm.data.dataset import load_dataset
from ctm.data.images import Images, epoch_order, random_flips, to_model_range
from ctm.data.load import NAMES, load_images
from ctm.data.notes import tell
from ctm.data.values import Values, scaled_values

__all__ = [
    "NAMES",
    "Data",
    "Dataset",
    "Images",
    "Values",
    "epoch_order",
    "listed_classes",
    "load_dataset",
    "load_images",
    "match_classes",
    "random_flips",
    "scaled_values",
    "tell",
    "to_model_range",
]
