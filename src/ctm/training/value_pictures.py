"""Samples that are no pictures, drawn as one: vectors as points, sequences as lines, fields as maps."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

__all__ = ["value_picture"]

_GROUND, _INK = (24, 24, 24), (235, 235, 235)
_LINES = [(110, 168, 254), (255, 170, 90), (120, 210, 130), (240, 120, 130), (190, 150, 240), (170, 170, 170)]
_CELL, _PANEL = 96, 240  # pixels of a sequence's cell, of a panel of points
_FAR = 1.5  # values at the edge: three deviations of standardised data


def value_picture(rows: list[Tensor], columns: int) -> Image.Image:
    """One picture of samples as the model has them, (B, *shape) a row of it. columns: samples a row that are drawn.

    vectors (D,): a panel a row, its samples as points by their first two components; of one component, its histogram.
    sequences (C, L): a cell a sample, a line a channel. fields (C, H, W): the channels of a sample above each other, blue
    below 0, white at 0, red above."""
    kind = rows[0].dim() - 1
    if kind == 1:
        return _beside([_points(row) for row in rows])
    if kind == 2:
        return _sheet([[_lines(sample) for sample in row[:columns]] for row in rows])
    return _sheet([[_maps(sample) for sample in row[:columns]] for row in rows])


def _sheet(rows: list[list[Image.Image]]) -> Image.Image:
    width, height = rows[0][0].size
    sheet = Image.new("RGB", ((width + 2) * len(rows[0]) + 2, (height + 2) * len(rows) + 2), _GROUND)
    for line, cells in enumerate(rows):
        for column, cell in enumerate(cells):
            sheet.paste(cell, (column * (width + 2) + 2, line * (height + 2) + 2))
    return sheet


def _beside(panels: list[Image.Image]) -> Image.Image:
    return _sheet([panels])


def _points(x: Tensor) -> Image.Image:
    """Samples (B, D) as points, or as a histogram where D is 1."""
    panel = Image.new("RGB", (_PANEL, _PANEL), (8, 8, 8))
    draw = ImageDraw.Draw(panel)
    places = ((x.double().numpy().clip(-_FAR, _FAR) / _FAR + 1) / 2 * (_PANEL - 1)).round().astype(int)
    if x.shape[1] == 1:
        counts = np.bincount(places[:, 0] // 6, minlength=_PANEL // 6)
        for cell, count in enumerate(counts.tolist()):
            top = _PANEL - 1 - round(count / max(counts.max(), 1) * (_PANEL - 8))
            draw.rectangle((cell * 6, top, cell * 6 + 4, _PANEL - 1), fill=_LINES[0])
        return panel
    for across, up in places[:, :2].tolist():
        draw.rectangle((across - 1, _PANEL - 1 - up - 1, across, _PANEL - 1 - up), fill=_LINES[0])
    return panel


def _lines(sample: Tensor) -> Image.Image:
    """A sequence (C, L), a line for each of its first six channels."""
    cell = Image.new("RGB", (_CELL, _CELL), (8, 8, 8))
    draw = ImageDraw.Draw(cell)
    draw.line((0, _CELL // 2, _CELL, _CELL // 2), fill=(60, 60, 60))
    values = sample.double().numpy().clip(-_FAR, _FAR)
    across = np.linspace(1, _CELL - 2, values.shape[1]) if values.shape[1] > 1 else np.array([_CELL / 2])
    for channel, colour in zip(values, _LINES, strict=False):
        ends = list(zip(across.tolist(), ((1 - channel / _FAR) / 2 * (_CELL - 1)).tolist(), strict=True))
        if len(ends) == 1:
            draw.point(ends, fill=colour)
        for begin, end in pairwise(ends):
            draw.line((*begin, *end), fill=colour)
    return cell


def _maps(sample: Tensor) -> Image.Image:
    """A field (C, H, W): its first four channels, one above the other."""
    levels = sample[:4].double().clamp(-_FAR, _FAR) / _FAR
    stacked = torch.cat(list(levels), dim=0)
    red, blue = (1 + stacked.clamp(max=0)), (1 - stacked.clamp(min=0))
    colours = torch.stack([red, torch.minimum(red, blue), blue], dim=-1)
    picture = Image.fromarray((colours * 255).round().to(torch.uint8).numpy())
    scale = max(1, _CELL // max(sample.shape[1:]))
    return picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)
