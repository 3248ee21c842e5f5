"""A watermark in the initial noise: the signs of x_T come from a keystream (Gaussian shading, arXiv 2404.04956, section 3.2).

    x_T = σ_max·|ε|·keystream(key, nonce),   ε standard normal, of (seed, i)

With one bit for each dimension the keystream chooses the sign and ε the magnitude. Over keys, or over nonces, x_T is exactly
N(0, σ_max²·I). So a marked image has the distribution of an unmarked one, if each image has a nonce of its own.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Sequence

from torch import Tensor

from ctm.arguments import words_for
from ctm.keystream import as_key, as_nonce, signs_of_many

__all__ = ["Marks"]


class Marks:
    """The watermarks of num images under one key.

    nonces: one for each image, a sequence of num of them; or one alone, which all images share. Warns where images share a
    nonce: they then have the same signs, and are less diverse. Raises ValueError for keys and nonces out of range and for
    another number of nonces."""

    def __init__(self, key: bytes, nonces: bytes | Sequence[bytes], num: int) -> None:
        self._key = as_key(key)
        if not isinstance(nonces, bytes | bytearray) and not isinstance(nonces, Sequence):
            raise ValueError(
                f"nonces must be bytes, or a sequence of them, one for each image, got {words_for(nonces)}"
            )
        given = [nonces] * num if isinstance(nonces, bytes | bytearray) else nonces
        if len(given) != num:
            raise ValueError(f"a watermark needs one nonce for each image, got {len(given)} for {num} images")
        self._nonces = [as_nonce(nonce) for nonce in given]
        different = len(set(self._nonces))
        if different < num:
            warnings.warn(
                f"{num} images share {different} nonce{'s' if different > 1 else ''} of the watermark: those with the same nonce "
                "start from the same signs and are less diverse; give each a nonce of its own",
                stacklevel=5,
            )

    @classmethod
    def of(cls, watermark: object, num: int) -> Marks | None:
        """The marks that `watermark=(key, nonces)` of `generate` asks for; None where it is None. Raises ValueError for
        anything else."""
        if watermark is None:
            return None
        if not isinstance(watermark, tuple | list) or len(watermark) != 2:
            raise ValueError(f"watermark must be (key, nonces), got a value of type {type(watermark).__name__}")
        key, nonces = watermark
        return cls(key, nonces, num)

    @classmethod
    def together(cls, several: Sequence[Marks]) -> Marks:
        """The marks of the images of all, in their order. Raises ValueError for marks of different keys."""
        if any(one._key != several[0]._key for one in several):
            raise ValueError("marks of different keys cannot be put together")
        whole = copy.copy(several[0])
        whole._nonces = [nonce for one in several for nonce in one._nonces]
        return whole

    def of_images(self, images: Sequence[int]) -> Marks:
        """The watermarks of some of the images, by their numbers."""
        some = copy.copy(self)
        some._nonces = [self._nonces[image] for image in images]
        return some

    def put(self, noise: Tensor) -> Tensor:
        """|ε| with the images' signs: noise (num, *shape) -> like it. Raises ValueError for another number of rows."""
        if len(noise) != len(self._nonces):
            raise ValueError(f"there are {len(self._nonces)} nonces for {len(noise)} images")
        found = signs_of_many(self._key, self._nonces, math.prod(noise.shape[1:]))
        return noise.abs() * found.to(noise).reshape(noise.shape)

    @staticmethod
    def warn_of_fresh_noise(gamma: float, jumps: int) -> None:
        """Warns where γ-sampling replaces the marked noise on the way."""
        if gamma > 0 and jumps > 1:
            warnings.warn(
                f"γ = {gamma:g} adds fresh noise between {jumps} jumps: it replaces the marked noise, in part or for γ = 1 all "
                "of it, and the watermark may not be found; γ = 0 keeps it",
                stacklevel=5,
            )
