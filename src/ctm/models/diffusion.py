"""A diffusion model: denoises, and does not jump."""

from __future__ import annotations

from torch import Tensor

from ctm.models.base import Model
from ctm.noise import match_dims
from ctm.parametrization import output_scalings

__all__ = ["DiffusionModel"]


class DiffusionModel(Model):
    """An EDM denoiser: D(x, t) = c_skip(t)·x + c_out(t)·F(c_in(t)·x, t, labels), arXiv 2206.00364, eq. 7. It has no `jump`.

    Arguments as TrajectoryModel's. The network is called as network(x, t, None, labels).
    """

    def denoise(self, x: Tensor, t: Tensor | float, labels: Tensor | None = None) -> Tensor:
        """D(x, t): x (B, *shape) at levels t (B,) > 0, or one for all; labels int64 (B,) with −1 = unconditional, or None -> like
        x. A list or array of whole numbers serves as labels, too.

        Raises ValueError for unfitting shapes, dtypes and labels."""
        level, labels = self._checked(x, t, labels)
        c_skip, c_out = output_scalings("edm", level, self.sigma_data, self.sigma_min)
        return match_dims(c_skip, x) * x + match_dims(c_out, x) * self._call_network(x, level, None, labels)
