"""Teachers: every diffusion model in one convention, denoise(x, t, condition) -> x0 with the noise level as time."""

from ctm.teachers.conditional_gaussian import ConditionalGaussian
from ctm.teachers.gaussian_mixture import GaussianMixture
from ctm.teachers.load import load_teacher

__all__ = ["ConditionalGaussian", "GaussianMixture", "load_teacher"]
