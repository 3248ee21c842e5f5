"""Teachers: every diffusion model in one convention, denoise(x, t, labels) -> x0 with the noise level as time."""

from ctm.teachers.gaussian_mixture import GaussianMixture

__all__ = ["GaussianMixture"]
