"""Nonces of the watermark: another one for each (seed, i), and for the same (seed, i) the same, so that the image comes again."""

from __future__ import annotations

import hashlib
import hmac

__all__ = ["LENGTH", "nonces_of"]

LENGTH = 16  # bytes


def nonces_of(watermark: bytes, key_id: str | None, seed: int, num: int) -> list[bytes]:
    """The nonces of num images that a holder of an API key asks for with a seed: HMAC-SHA-256 of (key_id, seed, i) under a key
    that comes from the watermark's, cut to 16 bytes.

    key_id: None for requests without a key. So two pictures have one nonce only where one user asks for one (seed, i) twice: with
    another γ or model, from the same noise."""
    secret = hmac.digest(watermark, b"ctm: nonces of seeds", hashlib.sha256)
    who = b"" if key_id is None else b"key " + key_id.encode("utf-8", "surrogatepass")
    asked = [b"%d %d %d " % (len(who), seed, index) + who for index in range(num)]
    return [hmac.digest(secret, one, hashlib.sha256)[:LENGTH] for one in asked]
