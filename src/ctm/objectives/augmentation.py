"""DiffAugment (arXiv 2006.10738): differentiable augmentations of what a discriminator sees.

Drawing and computing are apart: `draw` makes the random numbers, and the functions are pure. Images are (B, C, H, W).
Rows are the third dimension, "x" in the official code's names.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, fields
from typing import Literal

import torch
from torch import Tensor

__all__ = ["POLICY", "Augmentation", "AugmentationDraw", "augment", "colour", "cutout", "draw", "translate"]

Augmentation = Literal["colour", "translation", "cutout"]
POLICY: tuple[Augmentation, ...] = ("colour", "translation", "cutout")


@dataclass(frozen=True)
class AugmentationDraw:
    """The random numbers for B images. brightness in [−½, ½), saturation in [0, 2), contrast in [½, 3/2), each (B,);
    shift (B, 2) and offset (B, 2) whole numbers: rows and columns of the translation, and of the cutout's centre."""

    brightness: Tensor
    saturation: Tensor
    contrast: Tensor
    shift: Tensor
    offset: Tensor

    def rows(self, part: slice) -> AugmentationDraw:
        """Those of a part of the batch."""
        return AugmentationDraw(*(getattr(self, kept.name)[part] for kept in fields(self)))


def draw(
    images: Tensor, *, shift: float = 0.125, size: float = 0.2, generator: torch.Generator | None = None
) -> AugmentationDraw:
    """Random numbers for a batch like `images`: translations up to `shift` of the side, both ways, and a cutout of `size`
    of the side centred anywhere, for `cutout` with the same `size`."""
    n, sides = len(images), images.shape[2:]
    device = generator.device if generator is not None else images.device

    def uniform(low: float) -> Tensor:
        return (torch.rand(n, generator=generator, device=device) + low).to(images)

    def whole(low: int, high: int) -> Tensor:
        return torch.randint(low, high + 1, (n,), generator=generator, device=device).to(images.device)

    reach = [int(side * shift + 0.5) for side in sides]
    holes = [_hole(side, size) for side in sides]
    return AugmentationDraw(
        uniform(-0.5),
        2 * uniform(0.0),
        uniform(0.5),
        torch.stack([whole(-most, most) for most in reach], dim=1),
        torch.stack([whole(0, side - hole % 2) for side, hole in zip(sides, holes, strict=True)], dim=1),
    )


def _hole(side: int, size: float) -> int:
    """The side of the cutout's square: size·side, rounded."""
    return int(side * size + 0.5)


def colour(images: Tensor, brightness: Tensor, saturation: Tensor, contrast: Tensor) -> Tensor:
    """Brightness is added; saturation scales about each pixel's mean over channels; contrast about each image's mean."""
    images = images + _column(brightness, images)
    grey = images.mean(dim=1, keepdim=True)
    images = grey + _column(saturation, images) * (images - grey)
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    return mean + _column(contrast, images) * (images - mean)


def translate(images: Tensor, shift: Tensor) -> Tensor:
    """out[i, j] = in[i + shift_rows, j + shift_columns], 0 where that is outside. shift (B, 2) whole numbers."""
    for axis in (0, 1):
        side = images.shape[2 + axis]
        source = torch.arange(side, device=images.device) + shift[:, axis : axis + 1]
        inside = _along(((source >= 0) & (source < side)).to(images.dtype), axis)
        index = _along(source.clamp(0, side - 1), axis).expand_as(images)
        images = images.gather(2 + axis, index) * inside
    return images


def cutout(images: Tensor, offset: Tensor, size: float = 0.2) -> Tensor:
    """A square of round(size·side) becomes 0: indices offset − half … of each image, those outside moved to the border.
    offset (B, 2) whole numbers."""
    keep = torch.ones_like(images[:, :1])
    inside = []
    for axis in (0, 1):
        side = images.shape[2 + axis]
        hole = _hole(side, size)
        covered = (torch.arange(hole, device=images.device) + offset[:, axis : axis + 1] - hole // 2).clamp(0, side - 1)
        line = torch.zeros(len(images), side, dtype=images.dtype, device=images.device).scatter_(1, covered, 1.0)
        inside.append(_along(line, axis))
    return images * (keep - inside[0] * inside[1])


def augment(
    images: Tensor, random: AugmentationDraw, size: float = 0.2, policy: Collection[Augmentation] = POLICY
) -> Tensor:
    """Those of colour, translation and cutout that the policy names, in this order. images (B, C, H, W) -> like images.
    Of colour, grey images get brightness and contrast: they are their own mean over channels."""
    if "colour" in policy:
        images = colour(images, random.brightness, random.saturation, random.contrast)
    if "translation" in policy:
        images = translate(images, random.shift)
    return cutout(images, random.offset, size) if "cutout" in policy else images


def _column(value: Tensor, images: Tensor) -> Tensor:
    """(B,) as (B, 1, 1, 1)."""
    return value.to(images).reshape(-1, 1, 1, 1)


def _along(line: Tensor, axis: int) -> Tensor:
    """(B, side) as (B, 1, side, 1) for rows (axis 0) or (B, 1, 1, side) for columns."""
    return line[:, None, :, None] if axis == 0 else line[:, None, None, :]
