"""Wrappers of guided models that change where and how far guidance acts."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ctm.arguments import as_number
from ctm.conditions import Condition
from ctm.models.guided import Guided, image_of
from ctm.models.protocol import Model
from ctm.noise import match_dims

__all__ = ["Limited", "Thresholded"]


class Limited(Guided):
    """Guidance only at levels low ≤ t ≤ high (arXiv 2404.07724): elsewhere what the guided model guides, which spares the
    guidance's evaluations where no sample of the batch is inside. In a jump the level is the one it starts from.

    guided: a Guided. Raises ValueError for another model, where there is nothing to switch off, and unless 0 ≤ low < high."""

    model: Guided

    def __init__(self, guided: Guided, low: float, high: float) -> None:
        if not isinstance(guided, Guided):
            raise ValueError(
                f"Limited switches guidance on and off, and this {type(guided).__name__} is no guided model: put a guided one "
                "in, e.g. ClassifierFree(model, 2.0)"
            )
        super().__init__(guided)
        low, high = as_number(low, "low"), high if high == math.inf else as_number(high, "high")
        if not 0 <= low < high:
            raise ValueError(f"an interval of guidance needs 0 ≤ low < high, got {low:g} and {high:g}")
        self.low, self.high = low, high

    def guided(self, x: Tensor, t: Tensor, s: Tensor | None, condition: Condition) -> Tensor:
        inside = (t >= self.low) & (t <= self.high)
        if bool(inside.all()):
            return self.model.guided(x, t, s, condition)
        alone = self.model.unguided(x, t, s, condition)
        if not bool(inside.any()):
            return alone
        return torch.where(match_dims(inside, x).bool(), self.model.guided(x, t, s, condition), alone)

    def unguided(self, x: Tensor, t: Tensor, s: Tensor | None, condition: Condition) -> Tensor:
        return self.model.unguided(x, t, s, condition)


class Thresholded(Guided):
    """Dynamic thresholding (Imagen, arXiv 2205.11487, section 2.3): the denoised image, or g, is clamped to ±q and divided by
    q, q = max(1, the given quantile of its absolute values) for each sample. For data in [−1, 1].

    model: any model. Raises ValueError for a quantile outside (0, 1]."""

    def __init__(self, model: Model, quantile: float = 0.995) -> None:
        super().__init__(model)
        self.quantile = as_number(quantile, "quantile", 0, 1, above=True, why="0.995 is Imagen's")

    def guided(self, x: Tensor, t: Tensor, s: Tensor | None, condition: Condition) -> Tensor:
        image = image_of(self.model, x, t, s, condition)
        bound = match_dims(torch.quantile(image.flatten(1).abs().float(), self.quantile, dim=1).clamp(min=1), image)
        return image.clamp(-bound, bound) / bound
