"""Kernel distances between two sets of features: KID and CMMD, unbiased or nearly so at any number of samples."""

from __future__ import annotations

import torch
from torch import Tensor

from ctm.evaluation.number import Number, mean_with_error

__all__ = ["cmmd", "kid", "own_kernel"]

_SUBSET = 500
_CMMD_SIGMA, _CMMD_SCALE = 10.0, 1000.0


def _subsets(rows: int) -> int:
    return max(1, rows // _SUBSET) if rows >= 2 * _SUBSET else min(4, rows // 2)


def kid(a: Tensor, b: Tensor) -> Number:
    """The kernel distance, unbiased MMD² with the kernel (x·y/F + 1)³ (arXiv 1801.01401), of a (N, F) and b (M, F).

    It is the mean over disjoint subsets of about 500 rows (four subsets if there are fewer than 1,000), so the spread over
    subsets gives the error bar. Raises ValueError for fewer than two rows."""
    rows = min(len(a), len(b))
    if rows < 2:
        raise ValueError(f"KID needs at least two rows on both sides, got {len(a)} and {len(b)}")
    subsets = _subsets(rows)
    size = rows // subsets
    starts = range(0, subsets * size, size)
    values = [_polynomial_mmd(a[start : start + size].double(), b[start : start + size].double()) for start in starts]
    return mean_with_error(torch.stack(values))


def _polynomial_mmd(a: Tensor, b: Tensor) -> Tensor:
    """Σ_{i≠j} k(a_i, a_j)/(N(N − 1)) + the same of b − 2·mean k(a_i, b_j), with k(x, y) = (x·y/F + 1)³."""
    kernels = [(x @ y.T / x.shape[1] + 1) ** 3 for x, y in ((a, a), (b, b), (a, b))]
    among = [(kernel.sum() - kernel.trace()) / (len(kernel) * (len(kernel) - 1)) for kernel in kernels[:2]]
    return among[0] + among[1] - 2 * kernels[2].mean()


def _normalised(rows: Tensor) -> Tensor:
    return torch.nn.functional.normalize(rows.double(), dim=1)


def own_kernel(rows: Tensor) -> float:
    """The mean of CMMD's kernel over all pairs of rows (N, F), minus one. `cmmd` needs it of the reference, once."""
    unit = _normalised(rows)
    return float(_rows_of_kernel(unit, unit).mean())


def cmmd(a: Tensor, b: Tensor, own: float | None = None, products: tuple[Tensor, Tensor] | None = None) -> Number:
    """1000·MMD² with the kernel exp(−|x − y|²/(2·10²)) on embeddings scaled to length 1 (arXiv 2401.09603). a (N, F), b (M,
    F).

    The authors take the embeddings from CLIP. Any embedding works, but its numbers compare only with each other. own:
    `own_kernel(b)`. products: a·a' (N, N) and a·b (N, M) in float64, if known. The estimate is biased, as in the paper; with
    this wide kernel the bias is of the order of 10/n. Error bar: of a's sampling, by the first derivative."""
    own = own_kernel(b) if own is None else own
    if products is None:
        a, b = _normalised(a), _normalised(b)
        among, across = _rows_of_kernel(a, a), _rows_of_kernel(a, b)
    else:
        of_a, of_b = (rows.double().norm(dim=1).clamp(min=1e-12) for rows in (a, b))
        among, across = (_of_cosines(p / of_a[:, None] / of) for p, of in zip(products, (of_a, of_b), strict=True))
    value = _CMMD_SCALE * (among.mean() + own - 2 * across.mean())
    influence = 2 * _CMMD_SCALE * (among - across)
    return Number(float(value), mean_with_error(influence).error)


def _rows_of_kernel(a: Tensor, b: Tensor, step: int = 1000) -> Tensor:
    """The mean of the kernel over b for each row of a, minus one. The one cancels in the distance; without it more digits
    are kept."""
    parts = []
    for start in range(0, len(a), step):
        parts.append(_of_cosines(a[start : start + step] @ b.T))
    return torch.cat(parts)


def _of_cosines(cosines: Tensor) -> Tensor:
    """The mean of the kernel over the second dimension, minus one, for rows of length 1 with these products."""
    squares = (2 - 2 * cosines).clamp(min=0)
    return torch.expm1(-squares / (2 * _CMMD_SIGMA**2)).mean(dim=1)
