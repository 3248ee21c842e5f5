"""Autoguidance (arXiv 2406.02507): a model guided by a weaker version of itself."""

from __future__ import annotations

from torch import Tensor

from ctm.arguments import as_number
from ctm.conditions import Condition
from ctm.models.guided import Guided, image_of
from ctm.models.protocol import Model, taken_by

__all__ = ["AutoGuided"]


class AutoGuided(Guided):
    """D = D_guide + w·(D_model − D_guide), and in a jump the same of g: two evaluations, one of each (arXiv 2406.02507).

    guide: a weaker model of the same data, smaller or trained for less time, under the same condition as far as it takes it.
    scale: w, 1 or more; at 1 the guide is not asked. Raises ValueError for another scale, and for a guide of another shape."""

    def __init__(self, model: Model, guide: Model, scale: float) -> None:
        super().__init__(model)
        self.guide = guide
        self.scale = as_number(scale, "the scale of autoguidance", 1, why="1 is the model itself")
        shapes = [tuple(found) for each in (model, guide) if (found := getattr(each, "shape", None)) is not None]
        if len(set(shapes)) > 1:
            raise ValueError(
                f"the model makes samples of shape {shapes[0]} and its guide {shapes[1]}: give one of the same data"
            )

    @property
    def evaluations(self) -> int:
        """Of networks, in a call."""
        return 1 if self.scale == 1 else 2

    def guided(self, x: Tensor, t: Tensor, s: Tensor | None, condition: Condition) -> Tensor:
        own = self.unguided(x, t, s, condition)
        if self.scale == 1:
            return own
        weaker = image_of(self.guide, x, t, s, taken_by(self.guide, condition))
        return weaker + self.scale * (own - weaker)
