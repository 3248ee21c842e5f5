"""EDM's geometric augmentation of pictures, with the nine labels that tell a network what was done (arXiv 2206.00364,
appendix F.2, table 6)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

__all__ = ["LABEL_COUNT", "Geometry", "draw_geometry"]

LABEL_COUNT = 9
_GEOMETRY = 0x67656F6D  # keeps these draws apart from others of a step
_STRETCH = 0.2  # octaves of scale, and of each side's stretch, for a drawn number of 1
_SHIFT = 1 / 8  # of a picture's side, likewise
_DECIMALS = 9  # of places in pixels: whole pixels are met although sines are rounded


@dataclass(frozen=True)
class Geometry:
    """What is done to each picture of a batch, in this order. All arrays are float64 (B,); 0 does nothing.

    mirror, turn_over: 1 flips it left to right, top to bottom. scale: it becomes 2^(0.2·scale) times as large. rotation: by so
    many radians, counter-clockwise as it is seen. stretch: 2^(0.2·stretch) times as long along the direction `along`
    (radians), and as much shorter across it. right, down: moved by so many eighths of its width, its height."""

    mirror: np.ndarray
    turn_over: np.ndarray
    scale: np.ndarray
    rotation: np.ndarray
    stretch: np.ndarray
    along: np.ndarray
    right: np.ndarray
    down: np.ndarray

    @classmethod
    def nothing(cls, count: int) -> Geometry:
        """For so many pictures that stay as they are."""
        return cls(*(np.zeros(count) for _ in range(8)))

    def rows(self, part: slice) -> Geometry:
        """Of some of the pictures."""
        return replace(self, **{name: values[part] for name, values in vars(self).items()})

    def labels(self) -> Tensor:
        """float32 (B, 9): mirror, turn_over, scale, cos(rotation) − 1, sin(rotation), stretch·cos(along), stretch·sin(along),
        right, down. All are 0 for a picture that stays as it is."""
        columns = [
            self.mirror,
            self.turn_over,
            self.scale,
            np.cos(self.rotation) - 1,
            np.sin(self.rotation),
            self.stretch * np.cos(self.along),
            self.stretch * np.sin(self.along),
            self.right,
            self.down,
        ]
        return torch.from_numpy(np.stack(columns, axis=1).astype(np.float32))

    def sources(self, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
        """(matrix (B, 2, 2), offset (B, 2)): the value at (x, y) of a flipped picture's result is that of the flipped picture at
        matrix·(x, y) + offset. In pixels from the centre, x to the right and y down."""
        grow, long = 2.0 ** (_STRETCH * self.scale), 2.0 ** (_STRETCH * self.stretch)
        inverse = (
            _turned(self.rotation) / grow[:, None, None]
        )  # y points down, so the inverse of a turn left is this one
        inverse = inverse @ _turned(-self.along) @ _diagonal(1 / long, long) @ _turned(self.along)
        moved = np.stack([_SHIFT * width * self.right, _SHIFT * height * self.down], axis=1)
        return inverse, -(inverse @ moved[:, :, None])[:, :, 0]

    def apply(self, pictures: Tensor) -> Tensor:
        """Pictures float (B, C, H, W), H and W at least 2, as float32 of the same shape. Values between pixels are bicubic, those
        beyond the border are mirrored at the outer pixels' centres. Where sources are whole pixels, values keep their bits."""
        _, _, height, width = pictures.shape
        for flips, axis in ((self.mirror, -1), (self.turn_over, -2)):
            which = torch.from_numpy(flips != 0).view(-1, 1, 1, 1)
            pictures = torch.where(which, pictures.flip(axis), pictures)
        moving = np.flatnonzero(
            (self.scale != 0) | (self.rotation != 0) | (self.stretch != 0) | (self.right != 0) | (self.down != 0)
        )
        if len(moving) == 0:
            return pictures
        matrix, offset = (values[moving] for values in self.sources(height, width))
        centre = np.array([(width - 1) / 2, (height - 1) / 2])
        x, y = np.meshgrid(np.arange(width) - centre[0], np.arange(height) - centre[1])
        places = np.stack([x, y], axis=-1)  # (H, W, 2)
        found = np.einsum("bij,hwj->bhwi", matrix, places) + offset[:, None, None] + centre
        chosen = torch.from_numpy(moving)
        result = pictures.float().clone()
        result[chosen] = _between(result[chosen], found[..., 0], found[..., 1])
        return result


def _between(pictures: Tensor, x: np.ndarray, y: np.ndarray) -> Tensor:
    """Values of float32 pictures (B, C, H, W) at pixels (x, y), float64 (B, H, W) each, by Keys' cubic convolution (a = −1/2)."""
    height, width = pictures.shape[-2:]
    (columns, across), (rows, down) = _taps(x, width), _taps(y, height)
    flat, result = pictures.flatten(2), torch.zeros_like(pictures)
    for row, of_row in zip(rows, down, strict=True):
        line = torch.zeros_like(pictures)
        for column, of_column in zip(columns, across, strict=True):
            index = (row * width + column).flatten(1)[:, None].expand(-1, pictures.shape[1], -1)
            line += of_column[:, None] * flat.gather(2, index).view_as(pictures)
        result += of_row[:, None] * line
    return result


def _taps(places: np.ndarray, size: int) -> tuple[Tensor, Tensor]:
    """(numbers, weights), (4, …) each, of the four pixels of a line of `size` around each place. Beyond its ends the line is
    mirrored at the outer pixels."""
    places = np.round(places, _DECIMALS)
    first = np.floor(places)
    f = places - first
    weights = [
        ((-f + 2) * f - 1) * f / 2,
        ((3 * f - 5) * f * f + 2) / 2,
        ((-3 * f + 4) * f + 1) * f / 2,
        (f - 1) * f * f / 2,
    ]
    period = 2 * (size - 1)
    numbers = np.mod(first.astype(np.int64) + np.arange(-1, 3).reshape(4, *(1,) * places.ndim), period)
    numbers = np.minimum(numbers, period - numbers)
    return torch.from_numpy(numbers), torch.from_numpy(np.stack(weights).astype(np.float32))


def draw_geometry(count: int, share: float, seed: int, step: int) -> Geometry:
    """The geometry of the rows of a step's whole batch. Each kind of change is done to a picture with probability `share`; but
    half of all are mirrored whatever the share, as in EDM's training on CIFAR-10.

    A row depends on (seed, step, row) and the share only. So a continued run, several processes and pieces of a batch see the
    same."""
    random = np.random.default_rng([_GEOMETRY, seed, step])
    done = random.random((5, count)) < share
    flips = random.integers(0, 2, (2, count)).astype(np.float64)
    angles = random.uniform(-np.pi, np.pi, (2, count))
    normals = random.standard_normal((4, count))
    return Geometry(
        mirror=flips[0],
        turn_over=flips[1] * done[0],
        scale=normals[0] * done[1],
        rotation=angles[0] * done[2],
        stretch=normals[1] * done[3],
        along=angles[1] * done[3],
        right=normals[2] * done[4],
        down=normals[3] * done[4],
    )


def _turned(angle: np.ndarray) -> np.ndarray:
    """(B, 2, 2): what turns (x, y) by angle (B,) from x to y."""
    cosine, sine = np.cos(angle), np.sin(angle)
    return np.stack([np.stack([cosine, -sine], axis=-1), np.stack([sine, cosine], axis=-1)], axis=-2)


def _diagonal(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    zero = np.zeros_like(first)
    return np.stack([np.stack([first, zero], axis=-1), np.stack([zero, second], axis=-1)], axis=-2)
