"""Guidance: wrappers that turn a model into a guided model, for `denoise` and for `jump`.

Each corrects the denoised image D(x, t), and in a jump the g of G = (s/t)·x + (1 − s/t)·g, by the same amount. A wrapper is
a model again, so wrappers nest, and every sampler takes them. docs/sampling.md says what is exact.
"""

from ctm.guidance.gradients import ClassifierGuided, LossDescent, LossGuided
from ctm.guidance.limits import Limited, Thresholded
from ctm.guidance.opinions import Autoguided, BetweenConditions, BetweenLabels
from ctm.guidance.rejection import Rejected, rejection_sample
from ctm.models.guided import ClassifierFree, Guided, at_guidance, at_scale, takes_guidance

__all__ = [
    "Autoguided",
    "BetweenConditions",
    "BetweenLabels",
    "ClassifierFree",
    "ClassifierGuided",
    "Guided",
    "Limited",
    "LossDescent",
    "LossGuided",
    "Rejected",
    "Thresholded",
    "at_guidance",
    "at_scale",
    "rejection_sample",
    "takes_guidance",
]
