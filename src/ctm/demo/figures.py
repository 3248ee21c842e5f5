"""The demo's pictures, as PNG bytes."""

from __future__ import annotations

import io
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from ctm.demo.measure import GAMMAS, Row
from ctm.pictures import to_uint8

__all__ = ["loss_curves", "png", "quality_against_steps", "same_noise", "way_from_noise"]


def png(figure: Figure) -> bytes:
    """The figure as PNG, closed."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, bbox_inches="tight")
    plt.close(figure)
    return buffer.getvalue()


def _show(axes: Axes, image: Tensor) -> None:
    pixels = to_uint8(image[None])[0].numpy()
    axes.imshow(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels, cmap="gray", vmin=0, vmax=255)
    axes.set_xticks([])
    axes.set_yticks([])


def same_noise(rows: dict[str, Tensor]) -> Figure:
    """One row of images for each name, the same noise in each column."""
    count = len(next(iter(rows.values())))
    figure, grid = plt.subplots(len(rows), count, figsize=(0.75 * count + 2, 0.85 * len(rows)), squeeze=False)
    for (name, images), line in zip(rows.items(), grid, strict=True):
        for axes, image in zip(line, images, strict=True):
            _show(axes, image)
        line[0].set_ylabel(name, rotation=0, ha="right", va="center")
    return figure


def way_from_noise(levels: list[float], states: Tensor, ends: Tensor) -> Figure:
    """A jump path: the state at each level above, where one jump to the end would lead from there below."""
    figure, grid = plt.subplots(2, len(levels), figsize=(1.05 * len(levels) + 1, 2.6), squeeze=False)
    for column, level in enumerate(levels):
        _show(grid[0, column], states[column])
        _show(grid[1, column], ends[column])
        grid[0, column].set_title(f"{level:.3g}", fontsize=9)
    grid[0, 0].set_ylabel("state at σ", rotation=0, ha="right", va="center")
    grid[1, 0].set_ylabel("jump to the end", rotation=0, ha="right", va="center")
    return figure


def quality_against_steps(rows: list[Row], floor: float) -> Figure:
    """Fréchet distance of the student against steps for each γ, with the teacher's and the data's own."""
    figure, axes = plt.subplots(figsize=(6.5, 4))
    teacher, one_step = rows[0], next(row for row in rows[1:] if row.steps == 1)
    for gamma in GAMMAS:
        line = [one_step] + [row for row in rows[1:] if row.gamma == gamma and row.steps > 1]
        spread = [row.frechet_spread for row in line]
        axes.errorbar(
            [row.steps for row in line], [row.frechet for row in line], spread, marker="o", label=f"CTM, γ = {gamma:g}"
        )
    axes.axhline(teacher.frechet, color="black", linestyle="--", label=f"teacher, {teacher.evaluations} evaluations")
    axes.set_xscale("log", base=2)
    axes.set_xticks([row.steps for row in rows[1:] if row.gamma == 0], [str(r.steps) for r in rows[1:] if r.gamma == 0])
    axes.set_ylim(bottom=0)
    axes.set_xlabel("jumps (evaluations of the network)")
    axes.set_ylabel("Fréchet distance to the real digits")
    axes.legend(title=f"two halves of the data: {floor:.2f}")
    axes.grid(alpha=0.3)
    return figure


def loss_curves(metrics: dict[str, list[dict[str, Any]]]) -> Figure:
    """Losses against steps, one panel for each run."""
    figure, panels = plt.subplots(1, len(metrics), figsize=(5.5 * len(metrics), 3.6), squeeze=False)
    for axes, (name, rows) in zip(panels[0], metrics.items(), strict=True):
        for key in dict.fromkeys(key for row in rows for key in row if key.startswith("loss/")):
            known = [row for row in rows if key in row]  # a row has no losses where every step was skipped
            axes.plot([row["step"] for row in known], np.array([row[key] for row in known]), label=key[len("loss/") :])
        axes.set_yscale("log")
        axes.set_title(name)
        axes.set_xlabel("step")
        axes.legend()
        axes.grid(alpha=0.3)
    return figure
