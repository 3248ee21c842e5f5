"""Guidance: wrappers that turn a model into a guided model, for `denoise` and for `jump`.

Each corrects the denoised image D(x, t), and in a jump the g of G = (s/t)·x + (1 − s/t)·g, by the same amount. A wrapper is
a model again, so wrappers nest, and every sampler takes them. docs/sampling.md says what is exact.
"""

from ctm.guidance.base import Guided, Limited, Thresholded
from ctm.guidance.gradients import ClassifierGuided, LossDescent, LossGuided, feature_loss
from ctm.guidance.models import Autoguided, BetweenLabels, ClassifierFree, at_scale
from ctm.guidance.rejection import Rejected, rejection_sample

__all__ = [
    "Autoguided",
    "BetweenLabels",
    "ClassifierFree",
    "ClassifierGuided",
    "Guided",
    "Limited",
    "LossDescent",
    "LossGuided",
    "Rejected",
    "Thresholded",
    "at_scale",
    "feature_loss",
    "rejection_sample",
]
