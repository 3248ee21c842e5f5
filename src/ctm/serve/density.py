"""The likelihood of one picture: it takes gradients of the network, so it runs beside the shared calls, in its own thread."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ctm.conditions import Condition
from ctm.likelihood import Estimate, estimate_bits_per_dim
from ctm.models.protocol import RangedDenoiser
from ctm.serve.tickets import Expired

__all__ = ["bits_of"]

PROBES, TOLERANCE = 4, 1e-3


class _Until:
    """A model whose evaluations raise `Expired` after a time, or when nobody waits any more, so that a solver ends."""

    def __init__(self, model: RangedDenoiser, end: float, gone: Callable[[], bool]) -> None:
        self._model, self._end, self._gone = model, end, gone

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._model, name)

    def denoise(self, x: Tensor, t: Tensor, condition: Condition = None) -> Tensor:
        """D(x, t); shapes as of any model's `denoise`."""
        if time.monotonic() > self._end:
            raise Expired("the likelihood was not known at its deadline: ask again later")
        if self._gone():
            raise Expired("the likelihood was given up")
        return self._model.denoise(x, t, condition)


def bits_of(
    model: RangedDenoiser,
    image: Tensor,
    condition: Condition = None,
    *,
    seed: int = 0,
    deadline: float = 60.0,
    gone: Callable[[], bool] = lambda: False,
) -> Estimate:
    """Bits per dimension of one picture, with the standard error of Hutchinson's estimate over 4 probes; the flow to 1e-3.

    image uint8 (C, H, W); condition: of one sample; deadline: seconds; gone(): whether nobody
    waits for the answer any more, asked at each evaluation. Raises Expired, and ValueError as
    `ctm.likelihood.estimate_bits_per_dim`."""
    until: Any = _Until(model, time.monotonic() + deadline, gone)
    with torch.enable_grad():
        return estimate_bits_per_dim(
            until, image[None], condition, probes=PROBES, rtol=TOLERANCE, atol=TOLERANCE, seed=seed
        )
