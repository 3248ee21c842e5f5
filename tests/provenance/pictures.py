"""Pictures and a claim for the tests of provenance."""

import io

import numpy as np
from PIL import Image

from ctm.provenance import Claim

CLAIM = Claim(
    model="digits-ctm",
    digest="0123456789abcdef",
    seed=7,
    index=3,
    steps=2,
    gamma=0.25,
    grid=(80.0, 2.5, 0.002),
    condition=4,
    nonce="00112233445566778899aabbccddeeff",
    created="2026-01-02T03:04:05Z",
    record="r-17",
)


def pixels(side: int = 28, channels: int = 1) -> np.ndarray:
    drawn = np.random.default_rng(0).integers(0, 256, (side, side, channels), dtype=np.uint8)
    return drawn[..., 0] if channels == 1 else drawn


def png(picture: np.ndarray | None = None, **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels() if picture is None else picture).save(file, "png", **options)
    return file.getvalue()


def pixels_of(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))
