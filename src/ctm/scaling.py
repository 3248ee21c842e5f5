"""How the numbers of data become what a model learns, and back: a rule, and the numbers that it gave for these data."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor

__all__ = ["DEVIATION", "RULES", "Rule", "Scaling", "restored", "scaling_from"]

Rule: TypeAlias = Literal["none", "bytes", "range", "standard"]
RULES: tuple[Rule, ...] = get_args(Rule)
DEVIATION = (
    0.5  # of standardised data: the sigma_data for which noise levels and their draws are chosen (arXiv 2206.00364)
)
_LARGEST = 3.4e38  # of float32


@dataclass(frozen=True)
class Scaling:
    """x = (v − offset)/scale, by channel: v (B, C, …) as the data have them, x what a model learns.

    rule: how the numbers were found, which is said and kept.
        none      as they are: offset 0, scale 1
        bytes     uint8 to [-1, 1]: offset and scale 127.5
        range     smallest and largest value of each channel to −1 and 1
        standard  each channel to mean 0 and standard deviation 0.5, EDM's sigma_data (arXiv 2206.00364, table 1)
    A channel is the first axis of an item: a component of a vector (D,), a channel of a sequence (C, L) or field (C, H, W).
    offset, scale: one number for each channel, or one for all. Raises ValueError for other rules, and for numbers that are not
    finite or a scale that is not above 0."""

    rule: Rule
    offset: tuple[float, ...] = (0.0,)
    scale: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise ValueError(f"a scaling's rule is one of {', '.join(RULES)}, got {str(self.rule)[:40]!r}")
        if not self.offset or len(self.offset) != len(self.scale):
            raise ValueError(f"a scaling has as many offsets as scales, got {len(self.offset)} and {len(self.scale)}")
        if not all(math.isfinite(number) and abs(number) <= _LARGEST for number in (*self.offset, *self.scale)):
            raise ValueError("a scaling's offset and scale are finite numbers within float32's range")
        if not all(number > 0 for number in self.scale):
            raise ValueError("a scaling's scale is above 0")

    @property
    def changes(self) -> bool:
        """Whether x is another number than v anywhere."""
        return any(self.offset) or any(number != 1 for number in self.scale)

    def apply(self, values: Tensor) -> Tensor:
        """x float32 (B, C, …) of values v (B, C, …). Computed in float64, so that a large offset costs no digits."""
        if not self.changes:
            return values.float()
        offset, scale = self._like(values)
        return ((values.double() - offset) / scale).float()

    def undo(self, x: Tensor) -> Tensor:
        """v (B, C, …) of x, in x's dtype and on its device."""
        if not self.changes:
            return x
        if x.device.type == "mps":  # which has no float64
            offset, scale = (numbers.to(x.dtype) for numbers in self._like(x.cpu()))
            return x * scale.to(x.device) + offset.to(x.device)
        offset, scale = self._like(x)
        return (x.double() * scale + offset).to(x.dtype)

    def check_shape(self, shape: Sequence[int]) -> None:
        """Raises ValueError where the numbers are not those of items of this shape."""
        if len(self.offset) not in (1, shape[0]):
            raise ValueError(
                f"the scaling has numbers for {len(self.offset)} channels, and samples of shape {tuple(shape)} have {shape[0]}"
            )

    def as_json(self) -> dict[str, object]:
        """The scaling as config.json keeps it; `scaling_from` reads it."""
        return {"rule": self.rule, "offset": list(self.offset), "scale": list(self.scale)}

    def words(self) -> str:
        """The rule in words, for a person."""
        return _WORDS[self.rule]

    def _like(self, values: Tensor) -> list[Tensor]:
        sides = (1, -1, *([1] * (values.dim() - 2)))
        return [
            torch.tensor(numbers, dtype=torch.float64, device=values.device).view(sides)
            for numbers in (self.offset, self.scale)
        ]


_WORDS = {
    "none": "as they are",
    "bytes": "0 … 255 to [-1, 1]",
    "range": "each channel from its smallest and largest value to [-1, 1]",
    "standard": f"each channel to mean 0 and standard deviation {DEVIATION:g}",
}


def restored(model: object, x: Tensor) -> Tensor:
    """Samples x (B, …) of a model in the numbers of its data: `Scaling.undo` where the model keeps a scaling, else x itself."""
    scaling: Scaling | None = getattr(model, "scaling", None)
    return x if scaling is None else scaling.undo(x)


def scaling_from(entry: Any, shape: Sequence[int]) -> Scaling | None:
    """The scaling in a config.json's entry "scaling"; None for none. shape: of the model's samples. Raises ValueError for an
    entry that is no scaling of such samples."""
    if entry is None:
        return None
    if not isinstance(entry, Mapping) or set(entry) != {"rule", "offset", "scale"}:
        raise ValueError('"scaling" is a mapping with rule, offset and scale')
    numbers = [entry["offset"], entry["scale"]]
    if not all(isinstance(each, list) and all(type(n) in (int, float) for n in each) for each in numbers):
        raise ValueError('"scaling" needs lists of numbers as offset and scale')
    offset, scale = (tuple(float(number) for number in each) for each in numbers)
    found = Scaling(entry["rule"], offset, scale)
    found.check_shape(shape)
    return found
