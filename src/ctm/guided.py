"""Classifier-free guidance at a scale, D_w = D_∅ + w·(D_y − D_∅) (arXiv 2207.12598): a teacher's from two evaluations, and a
distilled student's from its input (arXiv 2210.03142). w = 1 is the conditional model."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from ctm.arguments import as_labels, as_levels, as_number, as_state
from ctm.noise import match_dims
from ctm.tuned import TunedGrid

__all__ = ["AtGuidance", "GuidedDenoiser", "at_guidance", "takes_guidance"]


def takes_guidance(model: Any) -> bool:
    """Whether the guidance scale is an input of the model, so that `at_guidance` sets it at no further cost."""
    return bool(getattr(model, "takes_guidance", False))


def at_guidance(model: Any, scale: float) -> AtGuidance:
    """The model at one guidance scale, for any sampler: `generate(at_guidance(model, 2.0), …)`.

    Raises ValueError where the scale is no input of the model (`takes_guidance`)."""
    return AtGuidance(model, scale)


class _Around:
    """A model around a model; what it does not change is the model's, but for its `grids`, tuned without guidance."""

    grids: Mapping[int, TunedGrid] = MappingProxyType({})

    def __init__(self, model: Any) -> None:
        self.model = model

    def __getattr__(self, name: str) -> Any:
        if name == "model":  # before __init__, as in a copy
            raise AttributeError(name)
        return getattr(self.model, name)

    def __call__(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """Calling a model means denoise."""
        return self.denoise(x, t, labels)

    def denoise(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        raise NotImplementedError

    def score(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """(D(x, t) − x)/t²; shapes as in `denoise`."""
        t = as_levels(t, as_state(x))
        return (self.denoise(x, t, labels) - x) / match_dims(t, x) ** 2


class AtGuidance(_Around):
    """A model that takes the guidance scale as an input, at one: a model with `denoise` and `jump` as samplers call them.

    scale: a number, or (B,) where all calls are on the same B samples. Samples without a label are at 1. Raises ValueError
    where the scale is no input of the model."""

    def __init__(self, model: Any, scale: float | Tensor) -> None:
        if not takes_guidance(model):
            raise ValueError(
                f"this {type(model).__name__} does not take a guidance scale: train a TrajectoryModel whose network has "
                "guidance_embedding: true, as in the recipe digits-ctm-guided"
            )
        super().__init__(model)
        self.scale = scale if isinstance(scale, Tensor) and scale.dim() == 1 else as_number(scale, "the guidance scale")

    def denoise(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """D_w(x, t); shapes and errors as of `TrajectoryModel.denoise`."""
        return self.model.denoise(x, t, labels, guidance=self.scale)

    def g(self, x: Tensor, t: Tensor, s: Tensor, labels: Tensor | None = None) -> Tensor:
        """g of the jump at this scale; shapes and errors as of `TrajectoryModel.g`."""
        return self.model.g(x, t, s, labels, guidance=self.scale)

    def jump(self, x: Tensor, t: Tensor, s: Tensor, labels: Tensor | None = None) -> Tensor:
        """The jump along the guided flow; shapes and errors as of `TrajectoryModel.jump`."""
        return self.model.jump(x, t, s, labels, guidance=self.scale)


class GuidedDenoiser(_Around):
    """D_w = D_∅ + w·(D_y − D_∅) of a conditional denoiser: two evaluations, made as one call on 2B samples.

    model: trained with labels left out at times. scale: w, (B,), one for each sample of the calls. A sample without a label
    has D_∅ for every w. Raises ValueError for a model without classes, and in a call without labels."""

    def __init__(self, model: Any, scale: Tensor) -> None:
        if not getattr(model, "num_classes", 0):
            raise ValueError(
                f"guidance is between a label and none, but this {type(model).__name__} knows no classes: give a "
                "conditional teacher"
            )
        super().__init__(model)
        self.scale = scale

    def denoise(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """D_w: x (B, …) at levels t (B,), labels int64 (B,) with −1 = none -> like x."""
        t, labels = as_levels(t, as_state(x), zero=True), as_labels(labels, x)
        if labels is None:
            raise ValueError("guidance needs labels: int64 (B,), −1 where a sample has none; these data have none")
        none = torch.full_like(labels, -1)
        both = self.model.denoise(torch.cat([x, x]), torch.cat([t, t]), torch.cat([labels, none]))
        conditional, unconditional = both.chunk(2)
        return unconditional + match_dims(self.scale.to(x), x) * (conditional - unconditional)
