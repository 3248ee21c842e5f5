"""The pictures that only the demo has: one sample's way from noise, and the losses of its two runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from ctm.evaluation.figures import image_lines
from ctm.pictures import to_uint8

__all__ = ["loss_curves", "way_from_noise"]


def way_from_noise(levels: list[float], states: Tensor, ends: Tensor) -> Figure:
    """A jump path: the state at each level above, where one jump to the end would lead from there below; both (N, C, H, W)."""
    lines = {"state at σ": to_uint8(states), "jump to the end": to_uint8(ends)}
    return image_lines(lines, columns=[f"{level:.3g}" for level in levels])


def loss_curves(metrics: Mapping[str, Sequence[Mapping[str, float]]]) -> Figure:
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
