"""Metrics from sums: Inception score, label accuracy, diversity within a class."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ctm.evaluation.number import Number
from ctm.evaluation.sums import Sums, zeros

__all__ = ["ClassSums", "ProbabilitySums", "psnr"]


def _jackknife(value: Callable[[Sequence[int]], float], blocks: int) -> Number:
    """value(all blocks), with the error bar from leaving out one block at a time: √((B−1)/B·Σ(θ_b − θ̄)²)."""
    others = torch.tensor([value([b for b in range(blocks) if b != left]) for left in range(blocks)]).double()
    error = math.sqrt((blocks - 1) / blocks * float((others - others.mean()).square().sum()))
    return Number(value(range(blocks)), error)


class ProbabilitySums(Sums):
    """Sums of a classifier's probabilities, by block: count (B,), total (B, C) of p, entropy (B,) of −Σ p·ln p, right (B,):
    how many were put in the class they were made for."""

    def __init__(self, classes: int, blocks: int) -> None:
        self.count, self.entropy, self.right = (zeros(blocks) for _ in range(3))
        self.total = zeros(blocks, classes)

    def add(self, logits: Tensor, indices: Tensor, labels: Tensor | None) -> None:
        """Add logits (N, C) of samples number indices (N,), made for labels (N,) if any."""
        logs = logits.double().log_softmax(dim=1)
        block = indices % len(self.count)
        self.count.index_add_(0, block, torch.ones(len(logs), dtype=torch.float64))
        self.total.index_add_(0, block, logs.exp())
        self.entropy.index_add_(0, block, -(logs.exp() * logs).sum(dim=1))
        if labels is not None:
            self.right.index_add_(0, block, (logs.argmax(dim=1) == labels).double())

    def inception_score(self) -> Number:
        """exp(H(mean p) − mean H(p)) over all samples at once (arXiv 1606.03498, with one split), between 1 and C."""

        def value(blocks: Sequence[int]) -> float:
            chosen = list(blocks)
            count = float(self.count[chosen].sum())
            mean = self.total[chosen].sum(dim=0) / count
            return math.exp(float(-torch.special.xlogy(mean, mean).sum() - self.entropy[chosen].sum() / count))

        return (
            _jackknife(value, len(self.count)) if float(self.count.min()) > 0 else Number(value(range(len(self.count))))
        )

    def accuracy(self, count: float | None = None) -> Number:
        """The share of samples put in the class they were made for, among the `count` samples that have a class (None: all),
        with the binomial error."""
        count = float(self.count.sum()) if count is None else count
        share = float(self.right.sum()) / count
        return Number(share, math.sqrt(share * (1 - share) / count))


class ClassSums(Sums):
    """Sums over features within each class: count (C,), total (C, F), squares (C,) of |f|²."""

    def __init__(self, classes: int, features: int) -> None:
        self.count, self.squares = zeros(classes), zeros(classes)
        self.total = zeros(classes, features)

    def add(self, rows: Tensor, labels: Tensor) -> None:
        """Add rows (N, F) of classes labels (N,); those without a class (−1) are left out."""
        rows, labels = rows[labels >= 0].double(), labels[labels >= 0]
        self.count.index_add_(0, labels, torch.ones(len(rows), dtype=torch.float64))
        self.squares.index_add_(0, labels, rows.square().sum(dim=1))
        self.total.index_add_(0, labels, rows)

    def spread(self) -> Tensor:
        """The mean |f − f'|² of two different samples of each class, 2·tr Σ_c: (C,). NaN for a class with fewer than two
        samples."""
        scatter = self.squares - self.total.square().sum(dim=1) / self.count
        return torch.where(self.count > 1, 2 * scatter / (self.count - 1), torch.nan)

    def diversity(self, reference: ClassSums) -> Number:
        """The spread in a class relative to the reference's spread, averaged over the classes that both have, with the error
        over classes. 1 is as diverse as the reference. Raises ValueError if no class is in both."""
        ratio = self.spread() / reference.spread()
        ratio = ratio[ratio.isfinite()]
        if len(ratio) == 0:
            raise ValueError("diversity in a class needs a class with two samples and two reference images")
        error = float(ratio.std()) / math.sqrt(len(ratio)) if len(ratio) > 1 else None
        return Number(float(ratio.mean()), error)


def psnr(mse: Tensor) -> Tensor:
    """10·log10(4/mse) dB for images in [−1, 1], whose range is 2; inf where mse is 0. Shape as mse."""
    return 10 * torch.log10(4 / mse)
