"""Weights of f-divergences between teacher and student, as functions of the ratio of their densities."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

__all__ = ["LIMIT", "Divergence", "ratio_weight"]

Divergence = Literal["reverse_kl", "forward_kl", "jensen_shannon", "hellinger"]
LIMIT = 5.0  # of |ln r|: what a learnt ratio says beyond that is noise, and r would be the whole loss


def ratio_weight(divergence: Divergence, log_ratio: Tensor) -> Tensor:
    """h(r) = r²·f''(r) of D_f = E_student[f(r)], r the teacher's density over the student's (f-distill, arXiv 2502.15681): the
    gradient of D_f is the mean of h(r) times the difference of the scores. Any shape.

        reverse_kl      f = −ln r                          h = 1
        forward_kl      f = r·ln r                         h = r
        jensen_shannon  f = r·ln r − (r + 1)·ln((r + 1)/2)   h = r/(r + 1)
        hellinger       f = 4·(1 − √r)                     h = √r

    log_ratio: ln r, kept in [−5, 5]. Raises ValueError for another divergence."""
    known = log_ratio.clamp(-LIMIT, LIMIT)
    if divergence == "reverse_kl":
        return torch.ones_like(known)
    if divergence == "forward_kl":
        return known.exp()
    if divergence == "jensen_shannon":
        return known.sigmoid()
    if divergence == "hellinger":
        return (known / 2).exp()
    raise ValueError(f"divergence must be reverse_kl, forward_kl, jensen_shannon or hellinger, got {divergence!r}")
