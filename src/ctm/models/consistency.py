"""A consistency model: jumps to the end of the trajectory only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from ctm.arguments import as_levels, as_state, checked
from ctm.conditioner import Conditioner
from ctm.conditions import Condition, takes_labels
from ctm.models.base import Model, brief

__all__ = ["ConsistencyModel"]


class ConsistencyModel(Model):
    """A consistency model (arXiv 2303.01469): f(x, t) = c_skip·x + c_out·F with the "cm" scalings, so that f(x, σ_min) = x.

    It jumps from any level to sigma_min and to no other. f is an end of the trajectory, not the mean E[x_0 | x_t]: its
    `denoise` and `score` are those of a denoiser only where the two agree, at low noise. Arguments as TrajectoryModel's.
    """

    def __init__(
        self,
        network: nn.Module | Mapping[str, Any],
        *,
        shape: Sequence[int],
        num_classes: int = 0,
        conditioner: Conditioner | Mapping[str, Any] | None = None,
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
        sigma_data: float = 0.5,
    ) -> None:
        super().__init__(
            network,
            shape=shape,
            num_classes=num_classes,
            conditioner=conditioner,
            sigma_min=sigma_min,
            sigma_max=sigma_max,
            sigma_data=sigma_data,
            inner="cm",
        )

    @takes_labels
    def denoise(self, x: Tensor, t: Tensor | float, condition: Condition = None) -> Tensor:
        """f(x, t): shapes and errors as DiffusionModel's."""
        level, condition = self._checked(x, t, condition)
        return self._represented(x, level, None, condition)

    @takes_labels
    def jump(self, x: Tensor, t: Tensor | float, s: Tensor | float, condition: Condition = None) -> Tensor:
        """f(x, t) where s = sigma_min. Raises ValueError for any other s, and for shapes as `denoise`."""
        s = as_levels(s, as_state(x), "s", zero=True)
        if checked() and not bool(((s - self.sigma_min).abs() <= 1e-6 * self.sigma_min).all()):
            raise ValueError(
                f"a consistency model jumps to sigma_min = {self.sigma_min} only, got s = {brief(s)}: sample it in one "
                "step, with gamma = 1, or with sampling.consistency"
            )
        return self.denoise(x, t, condition)
