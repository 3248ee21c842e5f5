"""Bits per dimension of images without a model: baselines for a likelihood."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

__all__ = ["histogram_bits", "png_bits"]


def png_bits(pixels: np.ndarray) -> np.ndarray:
    """Bits per value of each image as an optimised PNG file, header included. pixels uint8 (N, H, W, C), C = 1 or 3 ->
    float64 (N,)."""
    sizes = []
    for image in pixels:
        file = io.BytesIO()
        Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(file, "PNG", optimize=True)
        sizes.append(8 * len(file.getvalue()) / image.size)
    return np.asarray(sizes)


def histogram_bits(pixels: np.ndarray) -> np.ndarray:
    """−log2 p per value of each image. Every position's values are independent, with the histogram of the *other* images at
    that position plus one count spread evenly over 0 … 255. pixels uint8 (N, H, W, C) -> float64 (N,)."""
    flat = pixels.reshape(len(pixels), -1)
    counts = np.stack([(flat == value).sum(axis=0) for value in range(256)])  # (256, positions)
    own = np.take_along_axis(counts, flat.astype(np.int64), axis=0) - 1  # without the image itself
    return -np.log2((own + 1 / 256) / len(pixels)).mean(axis=1)
