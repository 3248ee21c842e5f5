"""Frozen feature networks: what distances, discriminators and metrics look at images through."""

from ctm.backbones.base import IMAGENET, Backbone, FunctionBackbone
from ctm.backbones.efficientnet import EfficientNetLite0

__all__ = ["IMAGENET", "Backbone", "EfficientNetLite0", "FunctionBackbone"]
