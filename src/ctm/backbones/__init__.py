"""Frozen feature networks for distances, discriminators and metrics."""

from ctm.backbones.base import IMAGENET, Backbone, FunctionBackbone
from ctm.backbones.deit import DeiT
from ctm.backbones.efficientnet import EfficientNetLite0
from ctm.backbones.lpips import ShiftTolerant
from ctm.backbones.teacher_encoder import TeacherEncoder

__all__ = ["IMAGENET", "Backbone", "DeiT", "EfficientNetLite0", "FunctionBackbone", "ShiftTolerant", "TeacherEncoder"]
