"""Guidance by a second opinion of a model: without labels, of a weaker model, or for other labels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ctm.arguments import as_number, words_for
from ctm.guidance.base import Guided, image_of
from ctm.guided import AtGuidance, at_guidance, takes_guidance

__all__ = ["Autoguided", "BetweenLabels", "ClassifierFree", "at_scale"]


def at_scale(model: Any, scale: float) -> AtGuidance | ClassifierFree:
    """The model under classifier-free guidance of this scale: by its own input where guidance was distilled into it, else by
    two evaluations. Raises ValueError for a model without classes."""
    if takes_guidance(model):
        return at_guidance(model, scale)
    if model.num_classes == 0:
        raise ValueError("--cfg needs a model with classes, and this one has none: leave it out")
    return ClassifierFree(model, scale)


class ClassifierFree(Guided):
    """Classifier-free guidance (arXiv 2207.12598): D = D_∅ + scale·(D_y − D_∅), both in one call of the model on 2B samples.

    scale 0: no labels; 1: the conditional model; above 1: guided. For models trained with labels left out at times.
    Exact at scale 0 and 1, for jumps too. Else the guided D is none of a diffusion of any data (the powers of blurred
    densities are not the blurred power), and the same combination of g is what a jump makes of it.
    """

    def __init__(self, model: Any, scale: float) -> None:
        super().__init__(model)
        self.scale = as_number(scale, "scale")

    def guided(self, x: Tensor, t: Tensor, s: Tensor | None, labels: Tensor | None) -> Tensor:
        if labels is None:
            raise ValueError("classifier-free guidance needs labels: give int64 (B,), −1 where a sample has none")
        if self.scale == 1:
            return self.unguided(x, t, s, labels)
        none = torch.full_like(labels, -1)
        if self.scale == 0:
            return self.unguided(x, t, s, none)
        twice = None if s is None else torch.cat([s, s])
        both = image_of(self.model, torch.cat([x, x]), torch.cat([t, t]), twice, torch.cat([labels, none]))
        conditional, unconditional = both.chunk(2)
        return unconditional + self.scale * (conditional - unconditional)


class Autoguided(Guided):
    """Autoguidance (arXiv 2406.02507): D = D_weak + scale·(D − D_weak), the weaker model being smaller or trained less.

    scale 1 is the model itself. weaker: a model of the same shape, with a jump where jumps are to be guided."""

    def __init__(self, model: Any, weaker: Any, scale: float) -> None:
        super().__init__(model)
        self.weaker, self.scale = weaker, as_number(scale, "scale")

    def guided(self, x: Tensor, t: Tensor, s: Tensor | None, labels: Tensor | None) -> Tensor:
        if s is not None and not hasattr(self.weaker, "jump"):
            raise ValueError(f"{type(self.weaker).__name__} has no jump: jumps are guided by a weaker model that jumps")
        good = self.unguided(x, t, s, labels)
        if self.scale == 1:
            return good
        weak = image_of(self.weaker, x, t, s, labels)
        return weak + self.scale * (good - weak)


class BetweenLabels(Guided):
    """D = (1 − share)·D_y + share·D_other: between two classes, for interpolation.

    other: int64 labels (B,); share (B,) in [0, 1], 0 being the labels that the call gives. One call on 2B samples."""

    def __init__(self, model: Any, other: Tensor, share: Tensor) -> None:
        super().__init__(model)
        if not (isinstance(other, Tensor) and isinstance(share, Tensor)):
            raise ValueError(f"other and share are tensors (B,), got {words_for(other)} and {words_for(share)}")
        if other.shape != share.shape or other.dim() != 1:
            raise ValueError(f"other and share are one number for each sample, got {other.shape} and {share.shape}")
        self.other, self.share = other, share

    def guided(self, x: Tensor, t: Tensor, s: Tensor | None, labels: Tensor | None) -> Tensor:
        if labels is None or len(labels) != len(self.other):
            raise ValueError(f"between labels: the call needs labels for the same {len(self.other)} samples")
        twice = None if s is None else torch.cat([s, s])
        both = torch.cat([labels, self.other.to(labels)])
        first, second = image_of(self.model, torch.cat([x, x]), torch.cat([t, t]), twice, both).chunk(2)
        return torch.lerp(first, second, self.share.to(x).reshape(-1, *(1,) * (x.dim() - 1)))
