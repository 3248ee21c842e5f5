"""The path of jumps: the state after each jump, and what the network took the picture to be."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ctm.requests import Jump, Steps
from ctm.serve.plans import guess_of

__all__ = ["Leg", "followed", "visible"]


@dataclass(frozen=True)
class Leg:
    """One jump of a path, from level t to level s. state: G(x, t, s); guess: g(x, t, s), the clean image in it; both (B, *shape),
    before any noise is added."""

    t: float
    s: float
    state: Tensor
    guess: Tensor


def followed(steps: Steps, legs: list[Leg]) -> Steps:
    """The plan itself, which appends each of its jumps to `legs`. Raises ValueError for a plan that asks for more than jumps."""
    request = next(steps)
    while True:
        if not isinstance(request, Jump):
            raise ValueError("a path is made of jumps, and this sampler asks the denoiser: use gamma or consistency")
        answer = yield request
        legs.append(Leg(float(request.t[0]), float(request.s[0]), answer, guess_of(request, answer)))
        try:
            request = steps.send(answer)
        except StopIteration as done:
            return done.value


def visible(state: Tensor, level: float, sigma_data: float) -> Tensor:
    """A state at a noise level between black and white: x·σ_d/√(s² + σ_d²), which has the data's deviation σ_d, clamped to
    [−1, 1]. At level 0 it is the state itself."""
    return torch.clamp(state * (sigma_data / math.hypot(level, sigma_data)), -1, 1)
