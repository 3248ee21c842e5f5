"""A diffusion model: denoises, and does not jump."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ctm.conditions import Condition, takes_labels
from ctm.models.base import Model
from ctm.preconditioning import Own

__all__ = ["DiffusionModel"]


class DiffusionModel(Model):
    """A denoiser: D(x, t) = c_skip(t)·x + c_out(t)·F(c_in(t)·x, level(t), condition), EDM eq. 7. It has no `jump`.

    Arguments as TrajectoryModel's. inner: "edm", or the preconditioning of a model that was trained to predict ε, v, x_0 or
    a flow (`ctm.preconditioning`). The network is called as network(c_in·x, level(t), None, condition).
    """

    @takes_labels
    def denoise(self, x: Tensor, t: Tensor | float, condition: Condition = None) -> Tensor:
        """D(x, t): x (B, *shape) at levels t (B,) > 0, or one for all; condition as of `TrajectoryModel.g` -> like x.

        Raises ValueError for unfitting shapes, dtypes and conditions."""
        level, condition = self._checked(x, t, condition)
        return self._represented(x, level, None, condition)

    def _settings(self) -> dict[str, Any]:
        own = isinstance(self.preconditioning, Own) and self.preconditioning.inner == "edm"
        return {**super()._settings(), **({} if own else {"inner": self.preconditioning.as_json()})}
