"""Philox 4×32-10: random integers as a function of a counter and a key, and normal numbers from them.

    (c0, c1, c2, c3) -> (hi(M1·c2) ⊕ c1 ⊕ k0, lo(M1·c2), hi(M0·c0) ⊕ c3 ⊕ k1, lo(M0·c0)),   ten times, k += (W0, W1) between

(Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.) There is no state. So all numbers of a
batch are computed at once, on the device where they are needed. The integers are the same on every device; the normal numbers
agree to 1e-6, because devices round logarithm, sine and cosine differently.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["normals", "philox4x32"]

_M0, _M1 = 0xD2511F53, 0xCD9E8D57  # multipliers
_W0, _W1 = 0x9E3779B9, 0xBB67AE85  # the key grows by these
_LOW = 0xFFFFFFFF
_ROUNDS = 10


def philox4x32(counter: Tensor, key: Tensor) -> Tensor:
    """Four random 32-bit integers for each counter.

    counter: int64 (4, …) with values in 0 … 2^32 − 1; key: int64 (2, …) likewise, its last dimensions broadcast to the counter's.
    Returns int64 (4, …) with values in 0 … 2^32 − 1, on the counter's device."""
    # A product of two 32-bit numbers wraps into int64 with its bits intact: >> and & read its halves. Numbers of the host are
    # operands only, so that nothing is sent to the device.
    c0, c1, c2, c3 = counter
    turns = torch.arange(_ROUNDS, device=counter.device).reshape(-1, *(1,) * (key.dim() - 1))
    first, second = (key[0] + turns * _W0) & _LOW, (key[1] + turns * _W1) & _LOW
    for k0, k1 in zip(first, second, strict=True):
        a, b = c0 * _M0, c2 * _M1
        c0, c1, c2, c3 = ((b >> 32) & _LOW) ^ c1 ^ k0, b & _LOW, ((a >> 32) & _LOW) ^ c3 ^ k1, a & _LOW
    return torch.stack([c0, c1, c2, c3])


def normals(integers: Tensor) -> Tensor:
    """Standard normal numbers from uniform 32-bit integers, as many as there are (Box and Muller, 1958).

    r = √(−2·ln((a + 1)/2^32)),   θ = 2π·(b + ½)/2^32 up to an eighth of a turn,   r·cos θ and r·sin θ

    integers: int64 (2n, …), the first half a, the second b. Returns float32 (2n, …). (a + 1)/2^32 is rounded to float32.
    The angle is taken to ±π/4 by its two leading bits, so that its rounding error in float32 stays below 1e-7."""
    a, b = integers.chunk(2)
    radius = (-2 * ((a + 1).to(torch.float32) * 2.0**-32).log()).sqrt()
    quarter, rest = b >> 30, b & 0x3FFFFFFF
    angle = ((rest - (1 << 29)).to(torch.float32) + 0.5) * (math.pi / 2 / (1 << 30))
    cosine, sine = radius * angle.cos(), radius * angle.sin()
    swapped, flipped = (quarter & 1).bool(), (quarter & 2).bool()
    first, second = torch.where(swapped, -sine, cosine), torch.where(swapped, cosine, sine)
    return torch.cat([torch.where(flipped, -first, first), torch.where(flipped, -second, second)])
