"""What every guided model shares, and the two wrappers that change where and how far guidance acts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from ctm.arguments import as_labels, as_levels, as_number, as_state
from ctm.noise import match_dims
from ctm.sampling.common import denoiser_of
from ctm.tuned import TunedGrid

__all__ = ["Guided", "Limited", "Thresholded", "g_of", "jump_with"]


def g_of(model: Any, x: Tensor, t: Tensor, s: Tensor, labels: Tensor | None) -> Tensor:
    """g of the jump of any model: (G − (s/t)·x)/(1 − s/t), which is D(x, t) in the limit s → t; the denoised image where s = t.

    Shapes as in `TrajectoryModel.jump`. Where s is near t the division loses digits, which `jump_with` multiplies away."""
    ratio = match_dims(s / t, x)
    jumped = model.jump(x, t, s, labels)
    ends = ratio == 1
    g = (jumped - ratio * x) / (1 - ratio).masked_fill(ends, 1.0)
    if bool(ends.any()):
        g = torch.where(ends, denoiser_of(model, labels)(x, t), g)
    return g


def jump_with(x: Tensor, g: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """G = (s/t)·x + (1 − s/t)·g, x itself where s = t."""
    ratio = match_dims(s / t, x)
    return torch.where(ratio == 1, x, ratio * x + (1 - ratio) * g)


class Guided(nn.Module):
    """A model around a model. A subclass gives `correct`, or `guided` where it needs no image of the model alone.

    `model` is any model; `jump` is there where the model has one. Attributes (shape, num_classes, sigma_min …) are the model's,
    but not its `grids`, which were tuned without guidance.
    """

    grids: Mapping[int, TunedGrid] = MappingProxyType({})

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "model" or name.startswith("_"):
                raise
            return getattr(self.model, name)

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """Calling a model means denoise."""
        return self.denoise(x, t, labels)

    def denoise(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """The guided denoised image. x (B, *shape) at levels t (B,), labels int64 (B,) or None -> like x."""
        return self.guided(x, as_levels(t, as_state(x), zero=True), None, as_labels(labels, x))

    def jump(self, x: Tensor, t: Tensor, s: Tensor, labels: Tensor | None = None) -> Tensor:
        """The jump with the guided g. s (B,) ≤ t. Raises ValueError where the model has no jump."""
        if not hasattr(self.model, "jump"):
            raise ValueError(
                f"{type(self.model).__name__} has no jump, so it cannot be guided in one: use heun or another"
            )
        t, s = as_levels(t, as_state(x), zero=True), as_levels(s, x, "s", zero=True)
        return jump_with(x, self.guided(x, t, s, as_labels(labels, x)), t, s)

    def score(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """(denoise − x)/t²; shapes as in `denoise`."""
        t = as_levels(t, as_state(x))
        return (self.denoise(x, t, labels) - x) / match_dims(t, x) ** 2

    def guided(self, x: Tensor, t: Tensor, s: Tensor | None, labels: Tensor | None) -> Tensor:
        """The guided denoised image where s is None, else the guided g(x, t, s)."""
        raise NotImplementedError

    def unguided(self, x: Tensor, t: Tensor, s: Tensor | None, labels: Tensor | None) -> Tensor:
        """What stands where guidance is switched off: the model's own, with the labels."""
        return image_of(self.model, x, t, s, labels)


def image_of(model: Any, x: Tensor, t: Tensor, s: Tensor | None, labels: Tensor | None) -> Tensor:
    """D(x, t) of a model where s is None, else its g(x, t, s)."""
    return denoiser_of(model, labels)(x, t) if s is None else g_of(model, x, t, s, labels)


class Limited(Guided):
    """Guidance only at levels low ≤ t ≤ high (arXiv 2404.07724): elsewhere what the guided model guides, which spares the
    guidance's evaluations where no sample of the batch is inside. In a jump the level is the one it starts from.

    guided: a Guided. Raises ValueError unless 0 ≤ low < high."""

    def __init__(self, guided: Guided, low: float, high: float) -> None:
        super().__init__(guided)
        low, high = as_number(low, "low"), high if high == math.inf else as_number(high, "high")
        if not 0 <= low < high:
            raise ValueError(f"an interval of guidance needs 0 ≤ low < high, got {low:g} and {high:g}")
        self.low, self.high = low, high

    def guided(self, x: Tensor, t: Tensor, s: Tensor | None, labels: Tensor | None) -> Tensor:
        inside = (t >= self.low) & (t <= self.high)
        if bool(inside.all()):
            return self.model.guided(x, t, s, labels)
        alone = self.model.unguided(x, t, s, labels)
        if not bool(inside.any()):
            return alone
        return torch.where(match_dims(inside, x).bool(), self.model.guided(x, t, s, labels), alone)

    def unguided(self, x: Tensor, t: Tensor, s: Tensor | None, labels: Tensor | None) -> Tensor:
        return self.model.unguided(x, t, s, labels)


class Thresholded(Guided):
    """Dynamic thresholding (Imagen, arXiv 2205.11487, section 2.3): the denoised image, or g, is clamped to ±q and divided by
    q, q = max(1, the given quantile of its absolute values) for each sample. For data in [−1, 1].

    model: any model. Raises ValueError for a quantile outside (0, 1]."""

    def __init__(self, model: Any, quantile: float = 0.995) -> None:
        super().__init__(model)
        self.quantile = as_number(quantile, "quantile", 0, 1, above=True, why="0.995 is Imagen's")

    def guided(self, x: Tensor, t: Tensor, s: Tensor | None, labels: Tensor | None) -> Tensor:
        image = image_of(self.model, x, t, s, labels)
        bound = match_dims(torch.quantile(image.flatten(1).abs().float(), self.quantile, dim=1).clamp(min=1), image)
        return image.clamp(-bound, bound) / bound
