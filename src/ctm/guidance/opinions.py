"""Guidance by a second opinion of a model: of a weaker one, or for other labels."""

from __future__ import annotations

import torch
from torch import Tensor

from ctm.arguments import as_number, whole_numbers, words_for
from ctm.conditions import LABELS, Condition, cat, labels_of, with_field
from ctm.models.guided import Guided, image_of
from ctm.models.protocol import Model, can_jump

__all__ = ["Autoguided", "BetweenLabels"]


class Autoguided(Guided):
    """Autoguidance (arXiv 2406.02507): D = D_weak + scale·(D − D_weak), the weaker model being smaller or trained less.

    scale 1 is the model itself. weaker: a model of the same shape, with a jump where jumps are to be guided."""

    def __init__(self, model: Model, weaker: Model, scale: float) -> None:
        super().__init__(model)
        self.weaker, self.scale = weaker, as_number(scale, "scale")

    def guided(self, x: Tensor, t: Tensor, s: Tensor | None, condition: Condition) -> Tensor:
        if s is not None and not can_jump(self.weaker):
            raise ValueError(f"{type(self.weaker).__name__} has no jump: jumps are guided by a weaker model that jumps")
        good = self.unguided(x, t, s, condition)
        if self.scale == 1:
            return good
        weak = image_of(self.weaker, x, t, s, condition)
        return weak + self.scale * (good - weak)


class BetweenLabels(Guided):
    """D = (1 − share)·D_y + share·D_other: between two classes, for interpolation.

    other: int64 labels (B,); share (B,) in [0, 1], 0 being the labels that the call gives. One call on 2B samples."""

    def __init__(self, model: Model, other: Tensor, share: Tensor) -> None:
        super().__init__(model)
        if not (isinstance(other, Tensor) and isinstance(share, Tensor)):
            raise ValueError(f"other and share are tensors (B,), got {words_for(other)} and {words_for(share)}")
        if other.shape != share.shape or other.dim() != 1:
            raise ValueError(f"other and share are one number for each sample, got {other.shape} and {share.shape}")
        if not bool(((share >= 0) & (share <= 1)).all()):  # so that NaN is refused too
            raise ValueError(f"share must be in [0, 1], got {[round(value, 6) for value in share.tolist()[:8]]}")
        self.other, self.share = whole_numbers(other, len(other)), share

    def guided(self, x: Tensor, t: Tensor, s: Tensor | None, condition: Condition) -> Tensor:
        labels = labels_of(condition)
        if labels is None or len(labels) != len(self.other):
            raise ValueError(f"between labels: the call needs labels for the same {len(self.other)} samples")
        twice = None if s is None else torch.cat([s, s])
        other = self.other.to(labels)
        both = cat(
            [condition, other if condition is labels else with_field(condition, LABELS, other)], [len(x), len(x)]
        )
        first, second = image_of(self.model, torch.cat([x, x]), torch.cat([t, t]), twice, both).chunk(2)
        return torch.lerp(first, second, self.share.to(x).reshape(-1, *(1,) * (x.dim() - 1)))
