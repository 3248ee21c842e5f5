"""Data sets as uint8 images with optional integer labels."""

from ctm.data.classes import listed_classes, match_classes
from ctm.data.images import Images, epoch_order, random_flips, to_model_range
from ctm.data.load import NAMES, load_images
from ctm.data.notes import tell

__all__ = [
    "NAMES",
    "Images",
    "epoch_order",
    "listed_classes",
    "load_images",
    "match_classes",
    "random_flips",
    "tell",
    "to_model_range",
]
