"""Classifier rejection sampling: draw, look, keep or draw again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ctm.arguments import as_count, as_number, as_seed, whole_numbers
from ctm.models.protocol import Denoiser
from ctm.sampling.generation import generate

__all__ = ["Rejected", "rejection_sample"]


@dataclass(frozen=True)
class Rejected:
    """samples (N, *shape) that were kept; candidates: how many were drawn for them; acceptance_rate: N/candidates."""

    samples: Tensor
    candidates: int

    @property
    def acceptance_rate(self) -> float:
        return len(self.samples) / self.candidates


def rejection_sample(
    model: Denoiser,
    labels: Tensor,
    classifier: Callable[[Tensor], Tensor],
    *,
    threshold: float | None = None,
    conditional: bool = True,
    seed: int = 0,
    rounds: int = 100,
    **options: Any,
) -> Rejected:
    """One sample for each of labels (N,) int64, drawn until the classifier takes it for its label.

    classifier(x0 (B, *shape)) -> logits (B, K). threshold: keep where p(y | x0) is at least that (CTM's rejection); None keeps
    with probability p(y | x0), which from a model without labels (conditional=False) samples p(x0 | y) exactly, so far as
    model and classifier are exact. options: of `generate` (steps, gamma, grid, sampler, batch_size, device).
    Candidate r of image i comes from (seed, i, r) alone. Raises ValueError for a threshold outside [0, 1], for labels below
    0, and where an image finds none in `rounds` candidates.
    """
    if threshold is not None:
        threshold = as_number(threshold, "threshold", 0, 1, why="it is a probability")
    rounds, seed = as_count(rounds, "rounds"), as_seed(seed)
    labels = whole_numbers(labels, len(labels) if hasattr(labels, "__len__") else 1).cpu()
    if labels.dim() != 1 or len(labels) == 0 or int(labels.min()) < 0:
        raise ValueError(f"labels must be at least one class ≥ 0, int64 (N,), got {labels.tolist()}")
    kept: dict[int, Tensor] = {}
    candidates = 0
    for attempt in range(rounds):
        pending = [i for i in range(len(labels)) if i not in kept]
        asked = labels[pending]
        seeds = [_candidate(seed, i, attempt) for i in pending]
        given = asked if conditional else torch.full_like(asked, -1)
        drawn = generate(model, len(pending), condition=given, seed=[number for number, _ in seeds], **options)
        with torch.no_grad():
            probability = classifier(drawn).softmax(dim=1).cpu().gather(1, asked[:, None])[:, 0]
        bar = torch.tensor([u for _, u in seeds]) if threshold is None else torch.full((len(pending),), threshold)
        candidates += len(pending)
        kept |= {i: drawn[j] for j, i in enumerate(pending) if probability[j] >= bar[j]}
        if len(kept) == len(labels):
            return Rejected(torch.stack([kept[i] for i in range(len(labels))]), candidates)
    missing = next(i for i in range(len(labels)) if i not in kept)
    raise ValueError(
        f"{len(labels) - len(kept)} of {len(labels)} images were not accepted in {rounds} candidates each, e.g. image "
        f"{missing} of label {int(labels[missing])}: lower the threshold, raise rounds, or guide the model"
    )


def _candidate(seed: int, image: int, attempt: int) -> tuple[int, float]:
    """The seed of candidate `attempt` of an image, and its uniform number in (0, 1]."""
    words = np.random.SeedSequence([seed, image, attempt]).generate_state(2, np.uint64)
    return int(words[0]) >> 1, (int(words[1]) + 1) / 2**64
