"""Finding the watermark of the initial noise: the model's own flow backwards, and a count of signs (arXiv 2404.04956).

The flow from an image back to σ_max gives z = x_T/σ_max. For a wrong key the signs of the keystream are fair coins, independent
of z. So the number of matches among m coordinates is exactly Binomial(m, ½), whatever the image is and however z was found, if
the coordinates are chosen without the keystream. Here they are the ones with the largest |z|: their signs survive most.

The way back is exact for an unchanged float image that followed the flow itself. It is inexact for

* an image of few jumps, which ends beside the flow's image: one jump more than eight;
* a picture of 256 values, or one that was compressed, resized, cropped or made noisy. `level` is the noise level that such a
  picture is taken to have;
* an image made with guidance, which takes its jumps further from the flow. The guided model finds no more than the plain one;
* a condition that is not the image's own, which gives another z.

Jumps with γ > 0, and samplers that add noise, replace x_T on the way: with γ = 1 nothing of it is left after several steps.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from ctm.arguments import as_count, as_number, as_state
from ctm.conditions import Condition, rows
from ctm.keystream import as_key, as_nonce, signs_of_many
from ctm.likelihood import encode
from ctm.models.protocol import Model
from ctm.provenance.binomial import binomial_tail
from ctm.sampling.generation import conditions_for

__all__ = ["Candidate", "Detection", "detect", "find", "inverted", "match_counts"]

OneCondition: TypeAlias = int | Mapping[str, Any] | None
LEVEL, SHARE, LEAST_BITS = 0.3, 0.25, 32  # see docs/provenance.md for the measurement
_TOGETHER = 1 << 22  # signs that are compared at once


@dataclass(frozen=True)
class Candidate:
    """A marked image that may be the one in question: its nonce and the condition it was made for (None: none), the digest of
    the model that made it and the id of its record, where these are known."""

    nonce: bytes
    condition: OneCondition = None
    model: str | None = None
    record: str | None = None


@dataclass(frozen=True)
class Detection:
    """The candidate that fits an image best.

    matches of bits signs are the candidate's; p_value: the probability of at least so many for a wrong key or nonce, in one
    comparison; tried: the number of comparisons; threshold: the allowed rate of false positives divided by it."""

    candidate: Candidate
    matches: int
    bits: int
    p_value: float
    tried: int
    threshold: float

    @property
    def nonce(self) -> bytes:
        return self.candidate.nonce

    @property
    def condition(self) -> OneCondition:
        return self.candidate.condition

    @property
    def found(self) -> bool:
        """Whether chance is ruled out at the allowed rate."""
        return self.p_value <= self.threshold


def detect(
    model: Model,
    images: Tensor,
    key: bytes,
    nonces: bytes | Sequence[bytes],
    conditions: Sequence[OneCondition] | None = None,
    **options: Any,
) -> list[Detection]:
    """`find` among all pairs of these nonces and conditions. conditions: labels, mappings of fields, or None for no condition;
    by default all classes of the model, or no condition if it has none."""
    if conditions is None:
        classes = int(getattr(model, "num_classes", 0) or 0)
        conditions = list(range(classes)) if classes else [None]
    given = [nonces] if isinstance(nonces, bytes | bytearray) else nonces
    return find(model, images, key, [Candidate(nonce, each) for each in conditions for nonce in given], **options)


def find(
    model: Model,
    images: Tensor,
    key: bytes,
    candidates: Iterable[Candidate],
    *,
    rate: float = 1e-4,
    level: float | None = LEVEL,
    share: float = SHARE,
    batch_size: int = 64,
) -> list[Detection]:
    """The candidate that fits best, for each of images (B, *model.shape) in [-1, 1].

    The flow goes backwards once for each condition among the candidates. rate: of false positives for each image, in (0, 1]; the
    threshold is rate / number of candidates (Bonferroni). level: the noise level that the images are taken to have (None: the
    model's sigma_min, for float images that followed the flow). share: of the coordinates that are counted, the ones with the
    largest |z| (see `match_counts`). Raises ValueError for arguments out of range, and if there is no candidate."""
    key, rate = as_key(key), as_number(rate, "rate", 0, 1, above=True)
    groups, every = _groups(candidates)
    if not every:
        raise ValueError("there is no nonce to compare with: give at least one")
    best: list[tuple[int, Candidate]] = [(-1, every[0])] * len(as_state(images, "images"))
    bits = 0
    for condition, members in groups:
        z = inverted(model, images, condition, level=level, batch_size=batch_size)
        counts, bits = match_counts(z, key, [candidate.nonce for candidate in members], share=share, tried=len(every))
        most, which = counts.max(dim=1)
        for image, (count, index) in enumerate(zip(most.tolist(), which.tolist(), strict=True)):
            if count > best[image][0]:
                best[image] = (count, members[index])
    threshold = rate / len(every)
    return [
        Detection(candidate, count, bits, binomial_tail(count, bits), len(every), threshold)
        for count, candidate in best
    ]


def inverted(
    model: Model, images: Tensor, condition: OneCondition = None, *, level: float | None = LEVEL, batch_size: int = 64
) -> Tensor:
    """z = x_T/σ_max of images (B, *model.shape) by the flow backwards, all under one condition: float (B, n). Raises ValueError
    for images of another shape and for a condition that the model does not take."""
    shape = tuple(getattr(model, "shape", images.shape[1:]))
    if tuple(as_state(images, "images").shape[1:]) != shape:
        raise ValueError(f"images must have shape (B, {', '.join(map(str, shape))}), got {tuple(images.shape)}")
    whole: Condition = None if condition is None else conditions_for(model, len(images), condition)
    parts = [slice(first, first + batch_size) for first in range(0, len(images), as_count(batch_size, "batch_size"))]
    fine = 1e-3  # pictures are right to 1e-2: a smaller tolerance changes no sign that counts
    found = [
        encode(model, images[part], rows(whole, part), level=level, rtol=fine, atol=fine).flatten(1) for part in parts
    ]
    return torch.cat(found) if found else images.flatten(1)


def match_counts(
    z: Tensor, key: bytes, nonces: Sequence[bytes], *, share: float = SHARE, tried: int = 1
) -> tuple[Tensor, int]:
    """(matches int64 (B, len(nonces)), bits): how many signs of z (B, n) are those of each nonce, among the `bits` coordinates
    with the largest |z| of each image.

    bits: `share` of n, but at least 32 + log2(tried), so that a full match is far less probable by chance than the threshold
    for so many candidates."""
    size = z.shape[1]
    wanted = round(as_number(share, "share", 0, 1, above=True) * size)
    bits = min(size, max(wanted, LEAST_BITS + math.ceil(math.log2(tried))))
    largest = z.abs().topk(bits, dim=1).indices
    chosen = torch.zeros(z.shape).scatter_(
        1, largest.cpu(), torch.where(z < 0, -1.0, 1.0).gather(1, largest).float().cpu()
    )
    together = max(1, _TOGETHER // size)
    sums = [
        chosen @ signs_of_many(key, nonces[first : first + together], size).float().T  # whole numbers, exact in float32
        for first in range(0, len(nonces), together)
    ]
    return ((torch.cat(sums, dim=1) + bits) / 2).round().long(), bits


def _groups(candidates: Iterable[Candidate]) -> tuple[list[tuple[OneCondition, list[Candidate]]], list[Candidate]]:
    """The candidates by their condition, and all of them."""
    groups: dict[Any, tuple[OneCondition, list[Candidate]]] = {}
    every = list(candidates)
    for candidate in every:
        as_nonce(candidate.nonce)
        groups.setdefault(_name(candidate.condition), (candidate.condition, []))[1].append(candidate)
    return list(groups.values()), every


def _name(condition: OneCondition) -> Any:
    """What equal conditions have in common, to group by."""
    if isinstance(condition, Mapping):
        return tuple((name, str(torch.as_tensor(value).tolist())) for name, value in sorted(condition.items()))
    return None if condition is None else int(condition)
