"""Losses of discriminators and generators from lists of logits, one list entry for each discriminator.

Logits are (B, …): the first dimension is the batch, the rest are positions of one discriminator's map. A row is averaged
over its positions, and all rows of all discriminators over each other, as in the official code: a discriminator counts the
same whatever the size of its map. All return a scalar, but for the losses of single rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import softplus

__all__ = [
    "generator_rows",
    "hinge_discriminator",
    "hinge_generator",
    "log_discriminator",
    "log_generator",
    "mean_logits",
]

Logits = Sequence[Tensor]


def _mean(logits: Logits, loss: Callable[[Tensor], Tensor]) -> Tensor:
    """The mean over rows of each row's mean loss."""
    return torch.cat([loss(entry).flatten(1).mean(dim=1) for entry in logits]).mean()


def mean_logits(logits: Logits) -> Tensor:
    """Each sample's mean over positions and discriminators -> (B,)."""
    return torch.stack([entry.flatten(1).mean(dim=1) for entry in logits]).mean(dim=0)


def generator_rows(fake: Logits, loss: Literal["hinge", "log"]) -> Tensor:
    """`hinge_generator` or `log_generator` of each sample -> (B,)."""
    return mean_logits([-entry if loss == "hinge" else softplus(-entry) for entry in fake])


def hinge_discriminator(real: Logits, fake: Logits) -> Tensor:
    """mean max(0, 1 − D(real)) + mean max(0, 1 + D(fake)) (official code)."""
    return _mean(real, lambda logits: (1 - logits).relu()) + _mean(fake, lambda logits: (1 + logits).relu())


def hinge_generator(fake: Logits) -> Tensor:
    """−mean D(fake) (official code)."""
    return -_mean(fake, lambda logits: logits)


def log_discriminator(real: Logits, fake: Logits) -> Tensor:
    """−mean ln σ(D(real)) − mean ln(1 − σ(D(fake))), σ the logistic function: the paper's loss."""
    return _mean(real, lambda logits: softplus(-logits)) + _mean(fake, softplus)


def log_generator(fake: Logits) -> Tensor:
    """−mean ln σ(D(fake)): the paper's loss in its non-saturating form."""
    return _mean(fake, lambda logits: softplus(-logits))
