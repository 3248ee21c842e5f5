"""Data sets as uint8 images with optional integer labels."""

from ctm.data.images import Images, epoch_order, to_model_range
from ctm.data.load import NAMES, load_images

__all__ = ["NAMES", "Images", "epoch_order", "load_images", "to_model_range"]
