"""Teachers: every diffusion model in one convention, denoise(x, t, labels) -> x0 with the noise level as time."""

from ctm.teachers.gaussian_mixture import GaussianMixture
from ctm.teachers.load import load_teacher

__all__ = ["GaussianMixture", "load_teacher"]
