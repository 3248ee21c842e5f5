"""The fields of a condition inside a network: vectors are embedded, maps shaped like the sample become channels beside it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ctm.conditions import Condition, presence

__all__ = ["Fields", "Shapes"]

Shapes = Mapping[str, Sequence[int]]


class Fields(nn.Module):
    """The fields that a network takes beside labels. A vector (D,), or one number, (), goes through two linear layers to a row of
    `out` numbers, which the network adds to its level vectors; where it is absent, a learned row stands. A field shaped like the
    sample but for its channels is concatenated to the input, with one more channel that is 1 where the field is present.

    arrays: names to shapes without B; sample: the sample's shape. Raises ValueError for a field of another shape."""

    def __init__(self, arrays: Shapes | None, sample: Sequence[int], out: int) -> None:
        super().__init__()
        shapes = {name: tuple(shape) for name, shape in (arrays or {}).items()}
        self.maps = {name: shape for name, shape in shapes.items() if len(shape) > 1}
        for name, shape in self.maps.items():
            if len(shape) != len(sample) or shape[1:] != tuple(sample[1:]):
                raise ValueError(
                    f"the field {name!r} has shape {list(shape)}: this network embeds vectors, and takes fields of the "
                    f"sample's own height and width beside it, [any, {', '.join(map(str, sample[1:])) or '…'}]"
                )
        vectors = {name: shape for name, shape in shapes.items() if len(shape) < 2}
        self.vectors = nn.ModuleDict({name: _Vector(math.prod(shape), out) for name, shape in vectors.items()})

    @property
    def channels(self) -> int:
        """How many channels are concatenated to the input."""
        return sum(shape[0] + 1 for shape in self.maps.values())

    def row(self, condition: Condition, n: int) -> Tensor | None:
        """The rows of all vectors together, (n, out); None where the network takes none."""
        found = [module(condition, name, n) for name, module in self.vectors.items()]
        return sum(found[1:], found[0]) if found else None

    def beside(self, x: Tensor, condition: Condition) -> Tensor:
        """x (B, C, …) with the maps as further channels, each with its presence; x itself where there are none."""
        parts = [x]
        for name, shape in self.maps.items():
            there = presence(condition, name, x.shape[0], x.device).to(x.dtype).reshape(-1, *(1,) * len(shape))
            if isinstance(condition, Mapping) and name in condition:
                parts.append(torch.where(there > 0, condition[name].to(x.dtype), 0.0))
            else:
                parts.append(x.new_zeros(x.shape[0], *shape))
            parts.append(there.expand(x.shape[0], 1, *shape[1:]))
        return torch.cat(parts, dim=1) if len(parts) > 1 else x


class _Vector(nn.Module):
    """A vector to a row: two linear layers with SiLU between them; a learned row where the vector is absent."""

    def __init__(self, size: int, out: int) -> None:
        super().__init__()
        self.first = nn.Linear(size, out)
        self.second = nn.Linear(out, out)
        self.absent = nn.Parameter(torch.zeros(out))

    def forward(self, condition: Condition, name: str, n: int) -> Tensor:
        weight = self.first.weight
        none = self.absent.to(weight.dtype).expand(n, -1)
        if not isinstance(condition, Mapping) or name not in condition:
            return none
        there = presence(condition, name, n)[:, None]
        value = condition[name].reshape(n, -1).to(weight.dtype)
        row = self.second(nn.functional.silu(self.first(torch.where(there, value, 0.0))))
        return torch.where(there, row, none)
