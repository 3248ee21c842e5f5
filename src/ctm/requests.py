"""What a method asks of a model, and how it is answered.

A method that calls a model again and again is a generator. It yields a request, is sent the answer, and returns its result. So
one loop drives one sampler, and another drives many samplers at once and answers their requests in one call of the network.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor

from ctm.conditions import Condition

__all__ = ["Denoise", "Jump", "Request", "Steps", "run"]


@dataclass(frozen=True)
class Denoise:
    """Asks for D(x, t), like x. x (B, *shape) at levels t (B,); condition: that of the B rows, or None."""

    x: Tensor
    t: Tensor
    condition: Condition = None


@dataclass(frozen=True)
class Jump:
    """Asks for G(x, t, s), like x. x (B, *shape) at levels t (B,), s (B,) ≤ t; condition: that of the B rows, or None."""

    x: Tensor
    t: Tensor
    s: Tensor
    condition: Condition = None


Request: TypeAlias = Denoise | Jump
Steps: TypeAlias = Generator[Request, Tensor, Tensor]


def run(steps: Steps, answer: Callable[[Request], Tensor]) -> Tensor:
    """What `steps` returns when each of its requests gets `answer` of it."""
    given: Tensor | None = None
    while True:
        try:
            request = next(steps) if given is None else steps.send(given)
        except StopIteration as done:
            return done.value
        given = answer(request)  # outside of the try: a StopIteration of its own is an error, not the end
