"""What every discriminator is: settings, and the module that they build."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

__all__ = ["Discriminator", "label_term"]


class Discriminator(ABC):
    """Settings of a discriminator. The module that `build` returns is called as (x, condition, networks) and gives a list of
    logits, (B, …) each: positive for data. Of the condition it sees the labels, int64 (B,) with −1 for none; networks:
    `ctm.objectives.Networks`, for feature networks that look through the teacher."""

    @abstractmethod
    def build(self, shape: Sequence[int], num_classes: int, networks: Any = None) -> nn.Module:
        """The module for data of `shape` (without batch) and num_classes labels (0: without). Its trainable weights come
        from torch's global generator."""


def label_term(embedding: nn.Embedding, hidden: Tensor, labels: Tensor) -> Tensor:
    """⟨e(y), h⟩ at each position, the projection discriminator's term (arXiv 1802.05637): hidden (B, C, …), labels (B,) ->
    (B, 1, …). It is 0 for label −1."""
    rows = embedding(labels.clamp(min=0)) * (labels >= 0).to(hidden.dtype)[:, None]
    return (hidden * rows.reshape(*rows.shape, *(1,) * (hidden.ndim - 2))).sum(dim=1, keepdim=True)
