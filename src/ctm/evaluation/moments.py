"""Means and covariances of a stream of rows. They are summed in separate blocks, so error bars and extrapolation need no
second pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ctm.evaluation.sums import Sums, zeros

__all__ = ["BLOCKS", "BlockMoments", "Gaussian", "symmetric_root"]

BLOCKS = 8  # row i belongs to block i mod 8
_PIECE = 2000  # rows i with the same i // 2000 are multiplied together: a few at a time would be bound by memory


def symmetric_root(matrix: Tensor) -> Tensor:
    """The positive root of a symmetric matrix (F, F) ≥ 0, by its eigenvalues. Eigenvalues below zero by rounding are set to
    zero."""
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


@dataclass(frozen=True)
class Gaussian:
    """mean (F,) and covariance (F, F) of `count` rows, float64 on the CPU; count 0: not known."""

    mean: Tensor
    covariance: Tensor
    count: int = 0

    @cached_property
    def root(self) -> Tensor:
        """The root of the covariance, computed once."""
        return symmetric_root(self.covariance)

    @classmethod
    def of(cls, rows: Tensor) -> Gaussian:
        """Mean and covariance of rows (N, F), with divisor N − 1. Raises ValueError for fewer than two rows."""
        if rows.dim() != 2 or len(rows) < 2:
            raise ValueError(f"a covariance needs at least two rows of features (N, F), got {tuple(rows.shape)}")
        rows = rows.double()
        return cls(rows.mean(dim=0), rows.T.cov().reshape(rows.shape[1], rows.shape[1]), len(rows))


class BlockMoments(Sums):
    """Sums over rows, separate for each block: count (B,), total (B, F), outer (B, F, F).

    A row waits until a row of a later piece arrives, and is then multiplied with the other rows of its piece. So in one
    process the rows that are multiplied together depend only on their numbers, and a pass that was interrupted ends with the
    same bits."""

    def __init__(self, features: int, blocks: int = BLOCKS) -> None:
        self.count = zeros(blocks)
        self.total = zeros(blocks, features)
        self._outer = zeros(blocks, features, features)
        self._waiting = [(zeros(0, features), torch.zeros(0, dtype=torch.int64))]  # rows and their numbers
        self._first = 0  # the piece of the earliest row that waits

    @property
    def outer(self) -> Tensor:
        """Σ x·xᵀ of all rows that were added. Call it after the last row: it multiplies the rows that wait."""
        self._multiply(None)
        return self._outer

    def tensors(self) -> dict[str, Tensor]:
        """The sums, and the rows that are not in `outer` yet: waiting (n, F) and their numbers waiting_indices (n,)."""
        waiting, indices = (torch.cat(parts) for parts in zip(*self._waiting, strict=True))
        sums = {"count": self.count, "total": self.total, "outer": self._outer}
        return sums | {"waiting": waiting, "waiting_indices": indices}

    def merge(self, others: dict[str, Tensor]) -> None:
        """Add the `tensors()` of other sums to these."""
        for name, mine in (("count", self.count), ("total", self.total), ("outer", self._outer)):
            mine += others[name]
        self._wait(others["waiting"], others["waiting_indices"])

    def add(self, rows: Tensor, indices: Tensor) -> None:
        """Add rows (N, F). Row j has number indices[j] (int64 (N,)) in the stream."""
        if len(rows) == 0:
            return
        rows, block = rows.double(), indices % len(self.count)
        self.count.index_add_(0, block, torch.ones(len(rows), dtype=torch.float64))
        self.total.index_add_(0, block, rows)
        self._wait(rows, indices)
        current = int(indices.max()) // _PIECE
        if self._first < current:
            self._multiply(current)

    def _wait(self, rows: Tensor, indices: Tensor) -> None:
        if len(rows):
            earliest = int(indices.min()) // _PIECE
            self._first = min(self._first, earliest) if len(self._waiting) > 1 else earliest
            self._waiting.append((rows, indices))

    def _multiply(self, current: int | None) -> None:
        """Multiply the rows that wait, piece by piece: the pieces before `current`, or all."""
        rows, indices = (torch.cat(parts) for parts in zip(*self._waiting, strict=True))
        piece = indices // _PIECE
        for number in piece.unique().tolist():
            if current is not None and number >= current:
                break
            for block in range(len(self.count)):
                chosen = rows[(piece == number) & (indices % len(self.count) == block)]
                self._outer[block].addmm_(chosen.T, chosen)
        rest = piece >= current if current is not None else torch.zeros_like(piece, dtype=torch.bool)
        self._waiting = self._waiting[:1]
        self._wait(rows[rest], indices[rest])

    def gaussian(self, blocks: Sequence[int] | None = None) -> Gaussian:
        """Mean and covariance (divisor n − 1) of some blocks together, or of all blocks. Raises ValueError for fewer than
        two rows."""
        chosen = list(range(len(self.count))) if blocks is None else list(blocks)
        count = float(self.count[chosen].sum())
        if count < 2:
            raise ValueError(f"a covariance needs at least two samples, got {count:.0f}")
        mean = self.total[chosen].sum(dim=0) / count
        outer = self.outer[chosen].sum(dim=0)
        return Gaussian(mean, (outer - count * torch.outer(mean, mean)) / (count - 1), int(count))
