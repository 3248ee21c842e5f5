"""What every discriminator is: settings, and the module that they build."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

from torch import Tensor, nn

from ctm.backbones.base import Networks
from ctm.conditioner import Conditioner
from ctm.models.protocol import Denoiser
from ctm.networks.fields import Shapes

__all__ = ["Discriminator", "built_for", "label_term", "row_term"]


class Discriminator(ABC):
    """Settings of a discriminator. The module that `build` returns is called as (x, condition, networks) and gives a list of
    logits, (B, …) each: positive for data. Of the condition it sees the labels, int64 (B,) with −1 for none, and the fields that
    it was built for; networks: `ctm.objectives.Networks`, for feature networks that look through the teacher."""

    @abstractmethod
    def build(
        self, shape: Sequence[int], num_classes: int, networks: Networks | None = None, arrays: Shapes | None = None
    ) -> nn.Module:
        """The module for data of `shape` (without batch), num_classes labels (0: without) and the fields `arrays` of a condition,
        names to shapes without B. It is called with arrays only where there are fields. Its trainable weights come from torch's
        global generator. Raises ValueError for data or fields that it cannot take."""


def built_for(discriminator: Discriminator, student: Denoiser, networks: Networks, *, moves: bool) -> nn.Module:
    """The module for a student's samples, labels and fields. moves: whether augmentation moves what it sees.

    Raises ValueError for a discriminator that takes no fields, and for maps that augmentation would leave where they are."""
    conditioner = getattr(student, "conditioner", None) or Conditioner()
    arrays, classes = conditioner.given_fields, getattr(student, "num_classes", 0)
    if not arrays:
        return discriminator.build(student.shape, classes, networks)
    build: Callable[..., nn.Module] = discriminator.build
    if "arrays" not in inspect.signature(build).parameters:
        raise ValueError(
            f"{type(discriminator).__name__} takes no fields of a condition, and the data have {', '.join(arrays)}: give its "
            "build an argument arrays, names to shapes"
        )
    built = build(student.shape, classes, networks, arrays=arrays)
    maps = [name for name, sides in arrays.items() if len(sides) > 1]
    if moves and maps:
        raise ValueError(
            f"augmentation translates the images and not the map {maps[0]!r} beside them: leave translation out of "
            "Adversarial's augmentation"
        )
    return built


def label_term(embedding: nn.Embedding, hidden: Tensor, labels: Tensor) -> Tensor:
    """⟨e(y), h⟩ at each position, the projection discriminator's term (arXiv 1802.05637): hidden (B, C, …), labels (B,) ->
    (B, 1, …). It is 0 for label −1."""
    return row_term(embedding(labels.clamp(min=0)) * (labels >= 0).to(hidden.dtype)[:, None], hidden)


def row_term(rows: Tensor, hidden: Tensor) -> Tensor:
    """⟨row, h⟩ at each position: rows (B, C), hidden (B, C, …) -> (B, 1, …)."""
    return (hidden * rows.reshape(*rows.shape, *(1,) * (hidden.ndim - 2))).sum(dim=1, keepdim=True)
