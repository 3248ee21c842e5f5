"""A plain discriminator for vectors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from ctm.conditions import Condition, labels_of
from ctm.discriminators.base import Discriminator, label_term

__all__ = ["MLPDiscriminator", "MLPDiscriminatorNetwork"]


@dataclass(frozen=True)
class MLPDiscriminator(Discriminator):
    """One logit from linear layers with leaky ReLU on the flattened sample. It has no normalisation: use `r1_weight`.

    width: of the hidden layers. layers: their number. Raises ValueError where one of them is below 1."""

    width: int = 128
    layers: int = 3

    def __post_init__(self) -> None:
        if self.width < 1 or self.layers < 1:
            raise ValueError(f"width and layers must be at least 1, got {self.width} and {self.layers}")

    def build(self, shape: Sequence[int], num_classes: int, networks: Any = None) -> MLPDiscriminatorNetwork:
        return MLPDiscriminatorNetwork(math.prod(shape), self.width, self.layers, num_classes)


class MLPDiscriminatorNetwork(nn.Module):
    """The module that `MLPDiscriminator` builds."""

    def __init__(self, inputs: int, width: int, layers: int, num_classes: int) -> None:
        super().__init__()
        sizes = [inputs] + [width] * layers
        self.body = nn.Sequential(*(m for a, b in pairwise(sizes) for m in (nn.Linear(a, b), nn.LeakyReLU(0.2))))
        self.logit = nn.Linear(width, 1)
        self.labels = nn.Embedding(num_classes, width) if num_classes else None

    def forward(self, x: Tensor, condition: Condition = None, networks: Any = None) -> list[Tensor]:
        """x (B, …) -> [(B, 1)]."""
        labels = labels_of(condition)
        hidden = self.body(x.flatten(1))
        logit = self.logit(hidden)
        if self.labels is not None and labels is not None:
            logit = logit + label_term(self.labels, hidden, labels) / hidden.shape[1] ** 0.5
        return [logit]
