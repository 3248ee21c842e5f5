"""Pseudorandom signs from a secret key and an image's nonce: the bits of the watermark in the initial noise.

    seed = HMAC-SHA-256(key, "ctm keystream 1" ‖ 0 ‖ nonce);   bits = SHAKE-256(seed), the lowest bit of each byte first

Without the key the signs are as good as fair coins, independent for each nonce (RFC 2104; FIPS 202). With the key the same signs
come again on every machine.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence

import torch
from torch import Tensor

from ctm.arguments import as_count, words_for

__all__ = ["as_key", "as_nonce", "signs", "signs_of_many"]

LEAST_KEY, MOST_NONCE = 16, 64  # bytes
_DOMAIN = b"ctm keystream 1\0"


def as_key(key: object) -> bytes:
    """A secret key as bytes. Raises ValueError, which shows nothing of it, for anything but at least 16 bytes."""
    if not isinstance(key, bytes | bytearray):
        raise ValueError(f"the key of the watermark must be bytes, got a value of type {type(key).__name__}")
    if len(key) < LEAST_KEY:
        raise ValueError(
            f"the key of the watermark must have at least {LEAST_KEY} bytes, got {len(key)}: secrets.token_bytes(32) makes one"
        )
    return bytes(key)


def as_nonce(nonce: object) -> bytes:
    """A nonce as bytes. Raises ValueError for anything but 1 to 64 bytes."""
    if not isinstance(nonce, bytes | bytearray) or not 1 <= len(nonce) <= MOST_NONCE:
        size = f"{len(nonce)} bytes" if isinstance(nonce, bytes | bytearray) else words_for(nonce)
        raise ValueError(f"a nonce must be 1 to {MOST_NONCE} bytes, got {size}: secrets.token_bytes(16) makes one")
    return bytes(nonce)


def signs(key: bytes, nonce: bytes, count: int) -> Tensor:
    """count signs, −1 or +1, of an image: int8 (count,) on the CPU.

    key: at least 16 secret bytes; nonce: 1 to 64 bytes, another one for each image. More signs of the same nonce begin with the
    fewer ones. Raises ValueError for arguments out of range."""
    return signs_of_many(key, [nonce], count)[0]


def signs_of_many(key: bytes, nonces: Sequence[bytes], count: int) -> Tensor:
    """`signs` of several nonces: int8 (len(nonces), count) on the CPU."""
    key, count = as_key(key), as_count(count, "count")
    size = (count + 7) // 8
    stream = bytearray().join(_bytes(key, as_nonce(nonce), size) for nonce in nonces)
    if not stream:
        return torch.empty(0, count, dtype=torch.int8)
    packed = torch.frombuffer(stream, dtype=torch.uint8).reshape(len(nonces), size, 1)
    bits = (packed >> torch.arange(8, dtype=torch.uint8)) & 1
    return bits.reshape(len(nonces), -1)[:, :count].to(torch.int8) * 2 - 1


def _bytes(key: bytes, nonce: bytes, size: int) -> bytes:
    return hashlib.shake_256(hmac.digest(key, _DOMAIN + nonce, "sha256")).digest(size)
