"""Metrics from nearest neighbours in feature space: precision, recall, density, coverage, and copies of the training set."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ctm.evaluation.number import Number, mean_with_error

__all__ = ["NEIGHBOURS", "Memorisation", "Training", "nearest", "precision_recall", "radii"]

NEIGHBOURS = 5
_STEP = 1000


def _part(products: Tensor | None, start: int) -> Tensor | None:
    return None if products is None else products[start : start + _STEP]


def _distances(a: Tensor, b: Tensor, of_b: Tensor | None = None, products: Tensor | None = None) -> Tensor:
    """|a_i − b_j|² (N, M), in the precision of the rows. of_b: |b_j|² (M,), products: a_i·b_j (N, M), if known."""
    of_b = b.square().sum(dim=1) if of_b is None else of_b
    squares = a.square().sum(dim=1)[:, None] + of_b[None]
    squares = squares.addmm_(a, b.T, alpha=-2) if products is None else squares.sub_(products, alpha=2)
    return squares.clamp_(min=0)


def radii(rows: Tensor, k: int = NEIGHBOURS, products: Tensor | None = None) -> Tensor:
    """|row − its k-th neighbour|² (N,); a row is not its own neighbour. products: row·row' (N, N), if known. Raises
    ValueError for k rows or fewer."""
    if len(rows) <= k:
        raise ValueError(f"the {k}th neighbour needs more than {k} rows, got {len(rows)}")
    parts = [
        _distances(rows[start : start + _STEP], rows, products=_part(products, start))
        .topk(k + 1, largest=False)
        .values[:, -1]
        for start in range(0, len(rows), _STEP)
    ]
    return torch.cat(parts)


def precision_recall(
    real: Tensor,
    fake: Tensor,
    k: int = NEIGHBOURS,
    real_radii: Tensor | None = None,
    products: tuple[Tensor, Tensor] | None = None,
) -> dict[str, Number]:
    """Precision, recall (arXiv 1904.06991), density and coverage (arXiv 2002.09797) of feature rows fake (N, F) against real
    (M, F), with balls to the k-th neighbour. All four depend on N and M.

    real_radii: `radii(real, k)`; products: fake·fake' (N, N) and fake·real (N, M) in float64, if known. Error bars: of the
    mean over fakes (precision, density) or over reals (recall, coverage). Raises ValueError for k rows or fewer on one side."""
    if len(real) <= k or len(fake) <= k:
        raise ValueError(f"precision and recall need more than {k} rows on both sides, got {len(real)}, {len(fake)}")
    real, fake = real.double(), fake.double()
    of_real = radii(real, k) if real_radii is None else real_radii
    among, across = (None, None) if products is None else (products[0], products[1].T)
    of_fake = radii(fake, k, among)
    inside = torch.zeros(len(fake))
    recalled, covered = [], []
    for start in range(0, len(real), _STEP):
        squares = _distances(real[start : start + _STEP], fake, products=_part(across, start))
        ball = of_real[start : start + _STEP, None]
        inside += (squares < ball).sum(dim=0)
        covered.append(squares.min(dim=1).values < ball[:, 0])
        recalled.append((squares < of_fake[None]).any(dim=1))
    return {
        "precision": mean_with_error(inside > 0),
        "recall": mean_with_error(torch.cat(recalled)),
        "density": mean_with_error(inside / k),
        "coverage": mean_with_error(torch.cat(covered)),
    }


def nearest(
    queries: Tensor, rows: Tensor, *, without: Tensor | None = None, of_rows: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Distance (N,) and number (N,) of the nearest of rows (M, F), for each of queries (N, F).

    without: int64 (N,), the number of a row to leave out (the query itself). of_rows: |row|² (M,), if known."""
    best = torch.full((len(queries),), torch.inf, dtype=queries.dtype)
    found = torch.zeros(len(queries), dtype=torch.int64)
    for start in range(0, len(rows), 10 * _STEP):
        end = start + 10 * _STEP
        squares = _distances(queries, rows[start:end].to(queries), None if of_rows is None else of_rows[start:end])
        if without is not None:
            here = (without >= start) & (without < start + squares.shape[1])
            squares[here, without[here] - start] = torch.inf
        values, indices = squares.min(dim=1)
        found = torch.where(values < best, indices + start, found)
        best = torch.minimum(values, best)
    return best.sqrt(), found


@dataclass(frozen=True)
class Memorisation:
    """share: of the samples, how many are nearer to a training image than any other training image is to that image.
    expected: the same share among training images left out, as for a model that copies nothing. distances (N,): of each
    sample to its nearest training image, in units of that image's own nearest distance. neighbours (N,): the number of that
    training image."""

    share: Number
    expected: Number
    distances: Tensor
    neighbours: Tensor


class Training:
    """The training set's features (M, F) in random order, with what every set of samples is compared with, computed once.

    Raises ValueError for fewer than four rows."""

    def __init__(self, rows: Tensor) -> None:
        if len(rows) < 4:
            raise ValueError(f"the memorisation check needs at least four training images, got {len(rows)}")
        self.rows = rows
        self._expected: dict[int, Number] = {}
        self._own = torch.full((len(rows),), torch.nan)  # each row's distance to its nearest other, once asked for

    @cached_property
    def _squares(self) -> Tensor:
        return self.rows.square().sum(dim=1)

    def _own_distances(self, numbers: Tensor) -> Tensor:
        """The distance of each of these rows to its nearest other row."""
        new = numbers.unique()
        new = new[self._own[new].isnan()]
        if len(new):
            self._own[new] = nearest(self.rows[new], self.rows, without=new, of_rows=self._squares)[0].to(self._own)
        return self._own[numbers]

    def expected(self, count: int) -> Number:
        """The share of training images that would be called copies of the others, as for a model that copies nothing. It is
        measured on `count` training images, or on a quarter of them all if that is less."""
        left_out = min(count, len(self.rows) // 4)
        if left_out not in self._expected:
            rest, squares = self.rows[:-left_out], self._squares[:-left_out]
            distance, number = nearest(self.rows[-left_out:], rest, of_rows=squares)
            own, _ = nearest(rest[number], rest, without=number, of_rows=squares)
            self._expected[left_out] = mean_with_error(distance < own)
        return self._expected[left_out]

    def memorisation(self, samples: Tensor) -> Memorisation:
        """The memorisation of samples (N, F). Its share is one minus their authenticity (arXiv 2102.08921)."""
        distance, number = nearest(samples.to(self.rows), self.rows, of_rows=self._squares)
        own = self._own_distances(number)
        ratios = distance / own.clamp(min=1e-12 * float(own.max().clamp(min=1e-30)))
        return Memorisation(mean_with_error(distance < own), self.expected(len(samples)), ratios, number)
