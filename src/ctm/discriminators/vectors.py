"""A plain discriminator for vectors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor, nn

from ctm.backbones.base import Networks
from ctm.conditions import Condition, labels_of
from ctm.discriminators.base import Discriminator, label_term, row_term
from ctm.networks.fields import Fields, Shapes

__all__ = ["MLPDiscriminator", "MLPDiscriminatorNetwork"]


@dataclass(frozen=True)
class MLPDiscriminator(Discriminator):
    """One logit from linear layers with leaky ReLU on the flattened sample. It has no normalisation: use `r1_weight`. Labels and
    vectors of a condition enter by projection, maps of the sample's height and width beside the sample.

    width: of the hidden layers. layers: their number. Raises ValueError where one of them is below 1."""

    width: int = 128
    layers: int = 3

    def __post_init__(self) -> None:
        if self.width < 1 or self.layers < 1:
            raise ValueError(f"width and layers must be at least 1, got {self.width} and {self.layers}")

    def build(
        self, shape: Sequence[int], num_classes: int, networks: Networks | None = None, arrays: Shapes | None = None
    ) -> MLPDiscriminatorNetwork:
        return MLPDiscriminatorNetwork(shape, self.width, self.layers, num_classes, arrays)


class MLPDiscriminatorNetwork(nn.Module):
    """The module that `MLPDiscriminator` builds."""

    def __init__(
        self, shape: Sequence[int], width: int, layers: int, num_classes: int, arrays: Shapes | None = None
    ) -> None:
        super().__init__()
        self.fields = Fields(arrays, shape, width) if arrays else None
        beside = 0 if self.fields is None else self.fields.channels * math.prod(shape[1:])
        sizes = [math.prod(shape) + beside] + [width] * layers
        self.body = nn.Sequential(*(m for a, b in pairwise(sizes) for m in (nn.Linear(a, b), nn.LeakyReLU(0.2))))
        self.logit = nn.Linear(width, 1)
        self.labels = nn.Embedding(num_classes, width) if num_classes else None

    def forward(self, x: Tensor, condition: Condition = None, networks: Networks | None = None) -> list[Tensor]:
        """x (B, …) -> [(B, 1)]."""
        labels = labels_of(condition)
        seen = x if self.fields is None else self.fields.beside(x, condition)
        hidden = self.body(seen.flatten(1))
        logit = self.logit(hidden)
        if self.labels is not None and labels is not None:
            logit = logit + label_term(self.labels, hidden, labels) / hidden.shape[1] ** 0.5
        row = None if self.fields is None else self.fields.row(condition, len(x))
        if row is not None:
            logit = logit + row_term(row, hidden) / hidden.shape[1] ** 0.5
        return [logit]
