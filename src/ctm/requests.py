"""What a method asks of a model, and how it is answered.

A method that calls a model again and again is a generator. It yields a request, is sent the answer, and returns its result. So
one loop drives one sampler, and another drives many samplers at once and answers their requests in one call of the network.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Hashable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from ctm.conditions import Condition, cat, rows

__all__ = ["Denoise", "Jump", "Request", "Steps", "joined", "kind_of", "part", "run", "taken"]


@dataclass(frozen=True)
class Denoise:
    """Asks for D(x, t), like x. x (B, *shape) at levels t (B,); condition: of the B rows, or None."""

    x: Tensor
    t: Tensor
    condition: Condition = None


@dataclass(frozen=True)
class Jump:
    """Asks for G(x, t, s), like x. x (B, *shape) at levels t (B,), s (B,) ≤ t; condition: of the B rows, or None."""

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


def kind_of(request: Request) -> Hashable:
    """Equal for requests that one call of the network can answer: of one kind, dtype, device and shape of a sample."""
    return type(request), request.x.dtype, request.x.device, request.x.shape[1:]


def joined(requests: Sequence[Request]) -> Request:
    """One request with the rows of all, in their order. They are of one kind (`kind_of`). Where one has no condition, or lacks a
    field that another one has, it is absent."""
    first = requests[0]
    if len(requests) == 1:
        return first
    condition = cat([request.condition for request in requests], [len(request.x) for request in requests])
    x, t = torch.cat([request.x for request in requests]), torch.cat([request.t for request in requests])
    if isinstance(first, Jump):
        return Jump(x, t, torch.cat([request.s for request in requests]), condition)  # type: ignore[union-attr]
    return Denoise(x, t, condition)


def part(request: Request, start: int, stop: int) -> Request:
    """The request of the rows start … stop − 1 alone."""
    return request if start == 0 and stop >= len(request.x) else taken(request, slice(start, stop))


def taken(request: Request, some: slice | Tensor) -> Request:
    """The request of some of its rows: a slice, or a tensor of their numbers."""
    condition = rows(request.condition, some)
    if isinstance(request, Jump):
        return Jump(request.x[some], request.t[some], request.s[some], condition)
    return Denoise(request.x[some], request.t[some], condition)
