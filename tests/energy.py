"""The energy distance with an error bar: whether two samples come from one distribution."""

from collections.abc import Callable

import torch
from torch import Tensor


def energy_distance(a: Tensor, b: Tensor) -> float:
    """2E|A − B| − E|A − A'| − E|B − B'|, unbiased."""
    n, m = len(a), len(b)
    within = torch.cdist(a, a).sum() / (n * (n - 1)) + torch.cdist(b, b).sum() / (m * (m - 1))
    return float(2 * torch.cdist(a, b).mean() - within)


def null_bound(draw: Callable[[int, int], Tensor], n: int, pairs: int = 24, deviations: float = 6.0) -> float:
    """What two true samples of n stay below: mean and `deviations` standard deviations of the distance between pairs.

    draw(n, seed) gives a true sample. The distance of true samples is a sum of squares, skewed: of a mixture it is mostly the
    modes' counts, about χ² of few degrees, of which six deviations leave one case in two thousand."""
    found = torch.tensor([energy_distance(draw(n, 60 + 2 * i), draw(n, 61 + 2 * i)) for i in range(pairs)])
    return float(found.mean() + deviations * found.std())
