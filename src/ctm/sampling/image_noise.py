"""The noise of images: every random number of image i comes from (seed, i) alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import torch
from torch import Tensor

from ctm.arguments import as_seed, words_for
from ctm.philox import normals, philox4x32
from ctm.sampling.marking import Marks

__all__ = [
    "CounterNoise",
    "ImageNoise",
    "NoiseStream",
    "as_noise_stream",
    "identities",
    "image_generator",
    "noise_of",
    "starting_noise",
]

NoiseStream: TypeAlias = Literal["v1", "v2"]
NOISE, LABEL, DEQUANTISATION, PROBE = range(4)  # purposes of random numbers
_LOW = 0xFFFFFFFF


def image_generator(seed: int, image: int, purpose: int) -> torch.Generator:
    """The CPU generator of image number `image` under `seed`, for one purpose: NOISE, LABEL, DEQUANTISATION or
    PROBE."""
    state = np.random.SeedSequence([seed, image, purpose]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state))


def identities(seed: int | Sequence[int], images: Sequence[int]) -> list[tuple[int, int]]:
    """(seed, image) that each of `images` takes its random numbers from: with one seed (seed, i); with a sequence of seeds,
    image i is number 0 of the i-th. Raises ValueError for a seed that is no whole number or negative, for seeds in no order
    (a set) or that can be read only once (an iterator), and for fewer seeds than an image's number."""
    if isinstance(seed, str | bytes) or not hasattr(seed, "__iter__") or getattr(seed, "shape", None) == ():
        one = as_seed(seed)
        return [(one, image) for image in images]
    if isinstance(seed, Set | Mapping) or not (hasattr(seed, "__len__") and hasattr(seed, "__getitem__")):
        raise ValueError(
            f"seeds must be in an order: a list, a tuple, a range, an array or a tensor, got {words_for(seed)}"
        )
    several: Any = seed
    seeds = [as_seed(number, "seeds") for number in several]
    if images and max(images) >= len(seeds):
        raise ValueError(f"a sequence of seeds needs one for each image, got {len(seeds)} for {max(images) + 1} images")
    return [(seeds[image], 0) for image in images]


class ImageNoise:
    """A `noise` for samplers: row j of each draw comes from the generator of image indices[j]. Each call gives the next
    draw, standard normal, made in float32 on the CPU and then brought to the dtype and device of its argument.

    marks: the watermarks of these images, in their order; the first draw, from which x_T is made, then has their signs."""

    def __init__(self, seed: int | Sequence[int], indices: Sequence[int], marks: Marks | None = None) -> None:
        self._generators = [image_generator(*who, NOISE) for who in identities(seed, indices)]
        self._marks = marks

    @classmethod
    def of(cls, who: Sequence[tuple[int, int]], marks: Marks | None = None) -> ImageNoise:
        """The noise of the images (seed, number)."""
        made = cls(0, (), marks)
        made._generators = [image_generator(*one, NOISE) for one in who]
        return made

    def __call__(self, like: Tensor) -> Tensor:
        drawn = torch.empty(len(self._generators), *like.shape[1:])
        for row, generator in zip(drawn, self._generators, strict=True):
            row.normal_(generator=generator)
        if self._marks is not None:
            drawn, self._marks = self._marks.put(drawn), None
        return drawn.to(like)


def starting_noise(shape: Sequence[int], indices: Sequence[int], seed: int = 0) -> Tensor:
    """The first draw, ε with x_T = sigma_max·ε, of the images `indices`: float32 (len(indices), *shape) on the CPU."""
    return ImageNoise(seed, indices)(torch.empty(len(indices), *shape))


class CounterNoise:
    """A `noise` for samplers, as `ImageNoise`, of other numbers: those of all images are computed at once on the device of its
    argument, from counters (`ctm.philox`), in float32. Nothing is copied from the CPU but one small table at the first draw.

    Number j of draw d of image i under a seed is in block j mod ⌈n/4⌉, n numbers an image:
    key (seed mod 2^32, ⌊seed/2^32⌋), counter (block, d, i mod 2^32, ⌊i/2^32⌋)."""

    def __init__(self, seed: int | Sequence[int], indices: Sequence[int], marks: Marks | None = None) -> None:
        who = identities(seed, indices)
        halves = [(seed & _LOW, seed >> 32, image & _LOW, image >> 32) for seed, image in who]
        self._table = torch.tensor(halves, dtype=torch.int64).reshape(-1, 4).T.unsqueeze(-1)  # (4, B, 1)
        self._marks, self._draws = marks, 0

    def __call__(self, like: Tensor) -> Tensor:
        self._table = self._table.to(like.device, non_blocking=True)
        count, size = self._table.shape[1], math.prod(like.shape[1:])
        block = torch.arange((size + 3) // 4, device=like.device).expand(count, -1)
        low, high = (part.expand_as(block) for part in self._table[2:])
        counter = torch.stack([block, torch.full_like(block, self._draws), low, high])
        drawn = normals(philox4x32(counter, self._table[:2]))  # (4, B, blocks)
        drawn = drawn.transpose(0, 1).reshape(count, -1)[:, :size].reshape(count, *like.shape[1:])
        self._draws += 1
        if self._marks is not None:
            drawn, self._marks = self._marks.put(drawn), None
        return drawn.to(like.dtype)


_STREAMS: dict[str, Callable[..., Callable[[Tensor], Tensor]]] = {"v1": ImageNoise, "v2": CounterNoise}


def as_noise_stream(value: Any) -> NoiseStream:
    """Raises ValueError for anything but "v1" and "v2"."""
    if value not in get_args(NoiseStream):
        raise ValueError(
            f'noise_stream must be "v1" (a CPU generator for each image) or "v2" (all images at once, by a counter), '
            f"got {words_for(value)}"
        )
    found: NoiseStream = value
    return found


def noise_of(
    noise_stream: NoiseStream, seed: int | Sequence[int], indices: Sequence[int], marks: Marks | None = None
) -> Callable[[Tensor], Tensor]:
    """The `noise` of the images `indices` in one of the two streams: `ImageNoise` ("v1") or `CounterNoise` ("v2")."""
    return _STREAMS[noise_stream](seed, indices, marks)
