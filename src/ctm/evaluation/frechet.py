"""Fréchet distance between two sets of features taken as Gaussians, its error bar, and its limit for infinitely many
samples."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ctm.evaluation.moments import BlockMoments, Gaussian
from ctm.evaluation.number import Number

__all__ = ["frechet", "frechet_distance", "frechet_number", "frechet_numbers", "too_few"]

_LIMIT_ROWS = 4  # samples for each feature from which the limit for many samples is told


def _eigen(a: Gaussian, b: Gaussian, vectors: bool = False) -> tuple[Tensor, Any]:
    """Eigenvalues (and vectors) of Σ_b^½·Σ_a·Σ_b^½. This matrix is symmetric and has the eigenvalues of Σ_a·Σ_b. Eigenvalues
    within rounding of zero are set to zero."""
    product = b.root @ a.covariance @ b.root
    product = (product + product.T) / 2
    found = torch.linalg.eigh(product) if vectors else (torch.linalg.eigvalsh(product), None)
    noise = found[0].abs().max() * len(product) * torch.finfo(product.dtype).eps
    return torch.where(found[0] > noise, found[0], 0.0), found[1]


def _from_eigenvalues(a: Gaussian, b: Gaussian, eigenvalues: Tensor) -> float:
    traces = a.covariance.trace() + b.covariance.trace()
    return float((a.mean - b.mean).square().sum() + traces - 2 * eigenvalues.sqrt().sum())


def frechet(a: Gaussian, b: Gaussian) -> float:
    """|μ_a − μ_b|² + tr Σ_a + tr Σ_b − 2·tr(Σ_b^½·Σ_a·Σ_b^½)^½, in float64 (Dowson & Landau 1982; FID: arXiv 1706.08500).

    It is not negative except for rounding. Raises ValueError for different numbers of features."""
    if a.mean.shape != b.mean.shape:
        raise ValueError(
            f"the two sets have {len(a.mean)} and {len(b.mean)} features: use one feature network for both"
        )
    return _from_eigenvalues(a, b, _eigen(a, b)[0])


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """The Fréchet distance of feature rows a (N, F) and b (M, F), N, M ≥ 2, in float64.

    The estimate is biased upwards, and more so with fewer rows. Compare only numbers from the same N and M."""
    return frechet(Gaussian.of(a), Gaussian.of(b))


def frechet_number(samples: BlockMoments, reference: Gaussian) -> Number:
    """The Fréchet distance of samples to a reference, with its error bar.

    The error bar covers the sampling of the samples; the reference is taken as given. It is the spread, over √blocks, of the
    distance's first derivative on each block's own moments. The derivative is 1 − T for the covariance and 2(μ_a − μ_b) for
    the mean, where T = Σ_b^½·(Σ_b^½·Σ_a·Σ_b^½)^-½·Σ_b^½ is the optimal transport from samples to reference. Raises
    ValueError for different numbers of features."""
    whole = samples.gaussian()
    if len(whole.mean) != len(reference.mean):
        raise ValueError(
            f"samples have {len(whole.mean)} features and the reference {len(reference.mean)}: use one feature network"
        )
    eigenvalues, vectors = _eigen(whole, reference, vectors=True)
    value = _from_eigenvalues(whole, reference, eigenvalues)
    return Number(value, _error(samples, whole, reference, eigenvalues, vectors))


def too_few(samples: int, real: int, features: int) -> list[str]:
    """Sentences that say why a Fréchet distance over so many features has little meaning with so few samples or data images
    (0: not known). Empty if both are enough.

    The covariance of N rows has rank N − 1 at most. With N ≤ F it is singular, and the distance is far above what more rows
    would give, by an amount that depends on the spectrum."""
    found = []
    for count, whose, advice in (
        (samples, "samples", f"give --num of at least {_LIMIT_ROWS * features}"),
        (
            real,
            "data images",
            f"compare over fewer features (--features classifier), or with more than {features} images",
        ),
    ):
        if 0 < count <= features:
            found.append(
                f"{count} {whose} are no more than the {features} features: their covariance is singular, so the Fréchet "
                f"distances are biased upwards by an unknown amount. Look at KID, which is unbiased, or {advice}."
            )
    if samples < _LIMIT_ROWS * features or 0 < real <= features:
        found.append(
            f"Fréchet∞ is left out: it needs at least {_LIMIT_ROWS} samples for each of the {features} features, and more data "
            "images than features."
        )
    return found


def frechet_numbers(samples: BlockMoments, reference: Gaussian, real: int = 0) -> tuple[Number, Number | None]:
    """(`frechet_number`, FID∞). FID∞ is its limit for infinitely many samples (arXiv 1911.07023).

    FID∞ is the line through n samples and the mean of two halves, against 1/n, at 1/n = 0. Both use every sample equally, so
    to first order its error bar is the same. It is None with fewer than 4 samples for each feature, because there the bias
    is no multiple of 1/n: from n = 2F rows of independent features and F the line misses by 28 % of the bias, from 4F and 2F
    by 5 %. It is also None if the reference is made of `real` images (0: not known), no more than features."""
    found, count, features = frechet_number(samples, reference), int(samples.count.sum()), len(reference.mean)
    if count < _LIMIT_ROWS * features or 0 < real <= features:
        return found, None
    halves = [samples.gaussian(range(start, len(samples.count), 2)) for start in (0, 1)]
    half = sum(frechet(part, reference) for part in halves) / 2
    inverse = sum(1 / part.count for part in halves) / 2
    slope = (half - found.value) / (inverse - 1 / count)
    return found, Number(found.value - slope / count, found.error)


def _error(
    samples: BlockMoments, whole: Gaussian, reference: Gaussian, eigenvalues: Tensor, vectors: Tensor
) -> float | None:
    """The standard error from the first derivative over blocks; None if a block is empty."""
    blocks = len(samples.count)
    if float(samples.count.min()) < 1:
        return None
    inverse = torch.where(eigenvalues > 0, eigenvalues, 1.0).rsqrt() * (eigenvalues > 0)
    left = reference.root @ vectors
    derivative = torch.eye(len(left), dtype=left.dtype) - (left * inverse) @ left.T
    offset = 2 * (whole.mean - reference.mean)
    means = samples.total / samples.count[:, None]
    influences = torch.stack(
        [
            (derivative * (samples.outer[block] / samples.count[block])).sum()
            - 2 * (derivative @ whole.mean) @ means[block]
            + offset @ means[block]
            for block in range(blocks)
        ]
    )
    return float(influences.std() / blocks**0.5)
