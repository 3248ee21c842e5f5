"""A model around a model."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from torch import Tensor, nn

from ctm.arguments import as_levels, as_state
from ctm.conditions import Condition, takes_labels
from ctm.models.grids import TunedGrid
from ctm.models.protocol import Model, denoiser_of, score_of

__all__ = ["Wrapper"]


class Wrapper(nn.Module):
    """A model that changes what another one says. What a subclass does not change (shape, num_classes, sigma_min, …) is the
    wrapped model's, but for `grids`: they were tuned for the model as it is. A subclass gives `denoise`, and `jump` where it
    jumps."""

    shape: tuple[int, ...]
    sigma_min: float
    sigma_max: float
    sigma_data: float
    grids: Mapping[int, TunedGrid] = MappingProxyType({})

    def __init__(self, model: Model) -> None:
        super().__init__()
        denoiser_of(model, None)  # refuses what is no model
        self.model = model

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "model" or name.startswith("_"):  # before __init__, as in a copy
                raise
            return getattr(self.model, name)

    @takes_labels
    def forward(self, x: Tensor, t: Tensor, condition: Condition = None) -> Tensor:
        """Calling a model means denoise."""
        return self.denoise(x, t, condition)

    def denoise(self, x: Tensor, t: Tensor, condition: Condition = None) -> Tensor:
        """D(x, t) as the subclass changes it. x (B, *shape) at levels t (B,), condition: of the B samples, or None -> like x."""
        raise NotImplementedError

    @takes_labels
    def score(self, x: Tensor, t: Tensor, condition: Condition = None) -> Tensor:
        """∇ log p_t(x) by `denoise`; shapes as there."""
        t = as_levels(t, as_state(x))
        return score_of(self.denoise(x, t, condition), x, t)
