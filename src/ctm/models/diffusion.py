"""A diffusion model: denoises, and does not jump."""

from __future__ import annotations

from torch import Tensor

from ctm.conditions import Condition, takes_labels
from ctm.models.base import Model
from ctm.noise import match_dims
from ctm.parametrization import output_scalings

__all__ = ["DiffusionModel"]


class DiffusionModel(Model):
    """An EDM denoiser: D(x, t) = c_skip(t)·x + c_out(t)·F(c_in(t)·x, t, condition), EDM eq. 7. It has no `jump`.

    Arguments as TrajectoryModel's. The network is called as network(x, t, None, condition).
    """

    @takes_labels
    def denoise(self, x: Tensor, t: Tensor | float, condition: Condition = None) -> Tensor:
        """D(x, t): x (B, *shape) at levels t (B,) > 0, or one for all; condition as of `TrajectoryModel.g` -> like x.

        Raises ValueError for unfitting shapes, dtypes and conditions."""
        level, condition = self._checked(x, t, condition)
        c_skip, c_out = output_scalings("edm", level, self.sigma_data, self.sigma_min)
        return match_dims(c_skip, x) * x + match_dims(c_out, x) * self._call_network(x, level, None, condition)
