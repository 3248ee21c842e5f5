"""A set of arrays of any shape: vectors, sequences, fields. Stored as they are, scaled when a batch is taken."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from ctm.data.base import Dataset
from ctm.data.mapped import check_unchanged
from ctm.data.notes import option, printable
from ctm.scaling import DEVIATION, Rule, Scaling

__all__ = ["ChannelMoments", "Values", "channel_moments", "scaled_values"]

_BLOCK = 1 << 24  # bytes that are looked at together
_DIGITS = 10  # of a scaling's numbers: more than float32 has, fewer than in which machines differ
_SHOWN = 8
_WIDEST = 8  # bytes of a float that torch has
_SMALLEST = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class ChannelMoments:
    """mean, variance, smallest and largest value of each channel (C,), in float64, of all numbers of a set."""

    mean: np.ndarray
    variance: np.ndarray
    low: np.ndarray
    high: np.ndarray

    def deviation(self, scaling: Scaling) -> float:
        """The standard deviation of all numbers of the set once they are scaled. The channels are equally long."""
        mean = (self.mean - np.array(scaling.offset)) / np.array(scaling.scale)
        return float(np.sqrt((self.variance / np.array(scaling.scale) ** 2 + (mean - mean.mean()) ** 2).mean()))


@dataclass(frozen=True)
class Values(Dataset):
    """values float16, float32, float64 or uint8 (N, *shape), an array or a memory map, with one to three axes after N: a vector
    (N, D), sequences (N, C, L), fields (N, C, H, W). scaled: how they become what a model learns. moments: of the values.
    The others are as of `ctm.data.base.Dataset`. Raises ValueError for other types and shapes."""

    values: np.ndarray
    scaled: Scaling
    moments: ChannelMoments
    labels: np.ndarray | None = None
    class_names: list[str] = field(default_factory=list)
    name: str = ""
    source: str = ""
    notes: tuple[str, ...] = ()
    fields: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_values(self.values.dtype, self.values.shape, self.name or "the data")
        self.scaled.check_shape(self.shape)
        self.check_condition()

    def __len__(self) -> int:
        return len(self.values)

    @property
    def shape(self) -> tuple[int, ...]:
        """(D,), (C, L) or (C, H, W) of one item."""
        return tuple(self.values.shape[1:])

    @property
    def scaling(self) -> Scaling:
        """How the stored numbers become what a model learns."""
        return self.scaled

    @property
    def stored(self) -> np.ndarray:
        """The numbers as they are stored, (N, *shape)."""
        return self.values

    def batch(self, indices: np.ndarray) -> tuple[Tensor, Tensor | None]:
        """Items `indices`, scaled, as float32 (B, *shape), and their labels int64 (B,) or None."""
        return self.scaled.apply(self.taken(indices)), self.labels_at(indices)

    def taken(self, indices: np.ndarray) -> Tensor:
        """The numbers of the items `indices` as they are stored, (B, *shape), in the machine's own order of bytes. Raises
        ValueError where the file was changed since it was opened (`ctm.data.mapped`)."""
        check_unchanged(self.values)
        rows = np.array(self.values[indices])
        return torch.from_numpy(rows.astype(rows.dtype.newbyteorder("="), copy=False))

    def with_scaling(self, scaling: Scaling) -> Values:
        """The same numbers under another scaling. Raises ValueError for one of another number of channels."""
        return replace(self, scaled=scaling)


def check_values(dtype: np.dtype, shape: Sequence[int], name: str) -> None:
    """Raises ValueError for an array that is no data set of vectors, sequences or fields."""
    known = dtype == np.uint8 or (dtype.kind == "f" and dtype.itemsize <= _WIDEST)
    if len(shape) not in (2, 3, 4) or min(shape) < 1 or not known:
        remedy = (
            "" if known else ". Save numbers as float32, array.astype('float32'); labels stand in an array of their own"
        )
        raise ValueError(
            f"{printable(name)}: data must be floats of 16, 32 or 64 bits or uint8, (N, D), (N, C, L) or (N, C, H, W) with at "
            f"least one item, got {dtype} {tuple(shape)}{remedy}"
        )


def channel_moments(values: np.ndarray, name: str) -> ChannelMoments:
    """The moments of each channel of values (N, C, …), read once in blocks. They are summed about the first block's mean, so that
    a large offset costs no digits. Raises ValueError, naming the first item, for NaN, infinity and numbers beyond float32's
    range."""
    channels = values.shape[1]
    rows = max(1, _BLOCK // max(values[0].nbytes, 1))
    low, high = np.full(channels, np.inf), np.full(channels, -np.inf)
    total, square, pivot = np.zeros(channels), np.zeros(channels), None
    for start in range(0, len(values), rows):
        check_unchanged(values)
        block = np.asarray(values[start : start + rows]).reshape(-1, channels, int(np.prod(values.shape[2:])))
        if values.dtype != np.uint8:
            _check_finite(block, start, name)
        low = np.minimum(low, block.min(axis=(0, 2)))
        high = np.maximum(high, block.max(axis=(0, 2)))
        block = block.astype(np.float64)
        pivot = block.mean(axis=(0, 2)) if pivot is None else pivot
        block -= pivot[:, None]
        total += block.sum(axis=(0, 2))
        square += np.einsum("ncl,ncl->c", block, block)
    assert pivot is not None
    count = values.size // channels
    mean = total / count
    return ChannelMoments(pivot + mean, np.maximum(square / count - mean**2, 0), low, high)


def _check_finite(block: np.ndarray, start: int, name: str) -> None:
    with np.errstate(over="ignore"):
        fine = np.isfinite(block.astype(np.float32, copy=False)).all(axis=(1, 2))
    if not fine.all():
        row = int(np.argmin(fine))
        beyond = "beyond float32's range" if np.isfinite(block[row]).all() else "not finite (NaN or infinity)"
        raise ValueError(
            f"{printable(name)}: item {start + row}, counted from 0, is {beyond}: leave such items out, or mend them"
        )


def scaled_values(
    values: np.ndarray,
    rule: Rule | None,
    *,
    name: str = "",
    labels: np.ndarray | None = None,
    class_names: Sequence[str] = (),
    source: str = "",
    notes: Sequence[str] = (),
    fields: Mapping[str, np.ndarray] | None = None,
) -> Values:
    """The data set of these values under a rule; None: bytes for uint8, else standard. The values are looked at once, for the
    rule's numbers and for what is not finite. Raises ValueError for what is no data set, for a rule that does not fit, and
    where all numbers of the set are equal and a rule has to divide by their spread."""
    who = name or "the data"
    check_values(values.dtype, values.shape, who)
    rule = rule or ("bytes" if values.dtype == np.uint8 else "standard")
    if rule == "bytes" and values.dtype != np.uint8:
        raise ValueError(f"{option('scaling', 'bytes')} is for uint8, and {printable(who)} is {values.dtype}")
    moments = channel_moments(values, who)
    _check_spread(moments, who)
    scaling, lines = _by_rule(rule, moments, who)
    told = [] if values.dtype in (np.uint8, np.float32) else [f"the numbers are {values.dtype}: read as float32"]
    parts = {"name": name, "labels": labels, "class_names": list(class_names), "source": source}
    return Values(values, scaling, moments, **parts, notes=(*notes, *told, *lines), fields=dict(fields or {}))  # type: ignore[arg-type]


def _check_spread(moments: ChannelMoments, name: str) -> None:
    """Raises ValueError for a channel whose numbers differ by less than float32, in which samples are given, can hold."""
    spread = moments.high - moments.low
    small = (spread > 0) & (spread < _SMALLEST)
    if small.any():
        channel = int(np.argmax(small))
        raise ValueError(
            f"{printable(name)}: the numbers of channel {channel}, counted from 0, differ by {spread[channel]:.3g} at most, "
            f"which float32 does not hold (down to {_SMALLEST:.2g}): give them in a larger unit, multiplied by a constant"
        )


def _by_rule(rule: Rule, moments: ChannelMoments, name: str) -> tuple[Scaling, list[str]]:
    """The scaling, and a line that names channels whose numbers are all equal: they are moved to 0 and not stretched."""
    if rule == "none":
        return Scaling("none"), []
    if rule == "bytes":
        return Scaling("bytes", (127.5,), (127.5,)), []
    if rule == "range":
        offset, scale = (moments.high + moments.low) / 2, (moments.high - moments.low) / 2
    else:
        offset, scale = moments.mean, np.sqrt(moments.variance) / DEVIATION
    idle = moments.high == moments.low
    if idle.all():
        raise ValueError(
            f"all numbers of {'each channel of ' if len(idle) > 1 else ''}{printable(name)} are equal, so that they have no "
            f"spread to divide by: look at the data, or give {option('scaling', 'none')}"
        )
    offset, scale = np.where(idle, moments.low, offset), np.where(idle, 1.0, scale)
    rounded = ([float(f"{number:.{_DIGITS}g}") for number in numbers] for numbers in (offset, scale))
    which = np.flatnonzero(idle).tolist()
    shown = ", ".join(map(str, which[:_SHOWN])) + (", …" if len(which) > _SHOWN else "")
    lines = [f"one number throughout in channel {shown}: moved to 0, not stretched"] if which else []
    return Scaling(rule, *(tuple(numbers) for numbers in rounded)), lines
