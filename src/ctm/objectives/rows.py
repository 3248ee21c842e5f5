"""What of a jump need not be computed: rows that stay where they are, and all that only a gradient needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ctm.conditions import Condition, rows
from ctm.models.protocol import jumper

__all__ = ["Moves", "jump_rows", "untracked"]


@dataclass(frozen=True)
class Moves:
    """Which rows of a batch a jump moves, known on the host: a jump to its own level gives x itself.

    mask (B,): bool, on the CPU. some: whether any row of the batch of all processes is moved. Where one is, every process makes
    the call, with a row that stays if it has no other: weights divided among processes are gathered in calls."""

    mask: Tensor
    some: bool

    @classmethod
    def between(cls, t: Tensor, s: Tensor | float) -> Moves:
        """Of the jumps from levels t (B,) to s (B,), s ≤ t, on the CPU and in the precision in which they are made."""
        mask = t > s
        return cls(mask, bool(mask.any()))

    def part(self, which: slice) -> Moves:
        """Those of a part of the batch."""
        return Moves(self.mask[which], self.some)

    def index(self, device: torch.device) -> Tensor | None:
        """The numbers of the rows to compute, on a device: none where nothing moves; None where all rows move."""
        if bool(self.mask.all()):
            return None
        found = self.mask.nonzero().flatten()
        if self.some and len(found) == 0 and len(self.mask) > 0:
            found = torch.zeros(1, dtype=torch.int64)
        return found.to(device, non_blocking=True)


def jump_rows(
    model: object, x: Tensor, t: Tensor, s: Tensor, condition: Condition, moves: Moves | None = None
) -> Tensor:
    """The jump t → s of those rows that move, the others of x as they are; all rows where `moves` is None. Shapes as in
    `Jumper.jump`. Gradients as of the jump of all rows.

    A compiled network gets all rows: for every other number of them it would be compiled anew."""
    jump = jumper(model).jump
    network = getattr(model, "network", None)
    compiled = getattr(network, "_compiled_call_impl", None) is not None
    index = None if moves is None or compiled else moves.index(x.device)
    if index is None:
        return jump(x, t, s, condition)
    if len(index) == 0:
        return x
    moved = jump(x[index], t[index], s[index], rows(condition, index))
    return x.index_copy(0, index, moved)


def untracked(compute: Callable[[], Tensor]) -> Tensor:
    """What `compute` gives, without gradient: computed under inference mode, which keeps no records for autograd, and handed on
    as an ordinary tensor."""
    with torch.inference_mode():
        found = compute()
    return found.clone()
