"""Guidance by a second opinion of a model: of a weaker one, or under another condition."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ctm.arguments import as_number, words_for
from ctm.conditions import LABELS, Condition, as_condition, as_tensor, cat, to, with_field
from ctm.models.guided import Guided, image_of
from ctm.models.protocol import Model, can_jump

__all__ = ["Autoguided", "BetweenConditions", "BetweenLabels"]


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


class BetweenConditions(Guided):
    """D = (1 − share)·D_y + share·D_other: between two conditions, for interpolation.

    other: a condition of the B samples, labels or a mapping; labels alone take the place of the call's labels, whose fields stay.
    share (B,) in [0, 1], 0 being the condition that the call gives. One call on 2B samples."""

    def __init__(self, model: Model, other: Condition, share: Tensor) -> None:
        super().__init__(model)
        if other is None or not isinstance(share, Tensor):
            raise ValueError(
                f"other is a condition and share a tensor (B,), got {words_for(other)} and {words_for(share)}"
            )
        if share.dim() != 1 or (isinstance(other, Tensor) and other.shape != share.shape):
            raise ValueError(f"share is one number for each sample of other, got {words_for(other)} and {share.shape}")
        if not bool(((share >= 0) & (share <= 1)).all()):  # so that NaN is refused too
            raise ValueError(f"share must be in [0, 1], got {[round(value, 6) for value in share.tolist()[:8]]}")
        self.other, self.share = as_condition(other, share), share
        if isinstance(other, Mapping):  # as precise as it was given: a call brings it to its own type
            self.other = {name: as_tensor(name, value) for name, value in other.items() if value is not None}

    def guided(self, x: Tensor, t: Tensor, s: Tensor | None, condition: Condition) -> Tensor:
        if len(x) != len(self.share):
            raise ValueError(f"between two conditions: the call needs the same {len(self.share)} samples, got {len(x)}")
        other = to(self.other, x.device, x.dtype)
        if isinstance(other, Tensor) and isinstance(condition, Mapping):
            other = with_field(condition, LABELS, other)
        both = cat([condition, other], [len(x), len(x)])
        twice = None if s is None else torch.cat([s, s])
        first, second = image_of(self.model, torch.cat([x, x]), torch.cat([t, t]), twice, both).chunk(2)
        return torch.lerp(first, second, self.share.to(x).reshape(-1, *(1,) * (x.dim() - 1)))


BetweenLabels = BetweenConditions  # its older name, for one release
