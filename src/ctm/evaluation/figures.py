"""The pictures of an evaluation, as PNG bytes."""

from __future__ import annotations

import io
from collections.abc import Sequence

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from torch import Tensor

from ctm.evaluation.plans import title_of, who_of
from ctm.evaluation.rows import Row
from ctm.foreign.text import JSONObject

__all__ = ["image_lines", "originals_and_copies", "png", "quality", "sample_lines"]


def png(figure: Figure) -> bytes:
    """The figure as PNG bytes. The figure is closed."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, bbox_inches="tight")
    plt.close(figure)
    return buffer.getvalue()


def image_lines(rows: dict[str, Tensor], columns: Sequence[str] = ()) -> Figure:
    """A line of images uint8 (N, H, W, C) for each name. columns: what stands above each column."""
    count, height, width, channels = next(iter(rows.values())).shape
    gap = max(1, height // 16)
    sheet = np.full((len(rows) * (height + gap) - gap, count * (width + gap) - gap, channels), 255, dtype=np.uint8)
    for line, images in enumerate(rows.values()):
        for column, image in enumerate(images.numpy()):
            top, left = line * (height + gap), column * (width + gap)
            sheet[top : top + height, left : left + width] = image
    figure, axes = plt.subplots(figsize=(0.75 * count, 0.75 * len(rows)))
    axes.imshow(sheet.squeeze(-1) if channels == 1 else sheet, cmap="gray", vmin=0, vmax=255)
    axes.xaxis.tick_top()
    axes.set_xticks([column * (width + gap) + width / 2 for column in range(len(columns))], list(columns))
    axes.set_yticks([line * (height + gap) + height / 2 for line in range(len(rows))], list(rows))
    axes.tick_params(length=0)
    axes.set_frame_on(False)
    return figure


def originals_and_copies(samples: Tensor, originals: Tensor) -> Figure:
    """A picture with samples uint8 (N, H, W, C) above, and the nearest training image of each below."""
    return image_lines({"sample": samples, "nearest training image": originals})


def _lines(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The rows of one line in the plot, in the order of their evaluations. A single jump is on the line of every γ."""
    lines: dict[str, list[Row]] = {}
    single = [row for row in rows if row.record["sampler"] == "gamma" and row.record["steps"] == 1]
    for row in rows:
        record = row.record
        if record["role"] == "samples":
            lines.setdefault("samples", []).append(row)
        elif record["sampler"] != "gamma":
            lines.setdefault(_line_name(record), []).append(row)
        elif row not in single or len(rows) == len(single):
            lines.setdefault(f"{who_of(record)}, γ = {record['gamma']:g}", []).append(row)
    for name, line in lines.items():
        if "γ" in name:
            who = who_of(line[0].record)
            line += [row for row in single if who_of(row.record) == who and not any(row is other for other in line)]
    return {name: sorted(line, key=lambda row: row.record["evaluations"] or 0) for name, line in lines.items()}


def _line_name(record: JSONObject) -> str:
    return who_of(record) if record["role"] == "peer" else f"{record['role']}, {record['sampler']}"


def quality(rows: Sequence[Row], metric: str, title: str) -> Figure:
    """A plot of a metric with error bars, against evaluations of the network and against seconds for an image."""
    figure, both = plt.subplots(1, 2, figsize=(11, 4), sharey=True)
    values = [row.numbers[metric].value for row in rows if metric in row.numbers]
    for name, line in _lines([row for row in rows if metric in row.numbers]).items():
        y = [row.numbers[metric].value for row in line]
        bars = [row.numbers[metric].error or 0.0 for row in line]
        if name == "samples":
            for axes in both:
                axes.axhline(y[0], color="black", linestyle=":", label=name)
            continue
        style = "s" if len(line) == 1 else "o"
        both[0].errorbar([row.record["evaluations"] for row in line], y, bars, marker=style, capsize=2, label=name)
        times = [1000 * (row.seconds_per_image or 0.0) for row in line]
        both[1].errorbar(times, y, bars, marker=style, capsize=2, label=name)
    for axes, words in zip(both, ("evaluations of the network", "ms for an image, as measured"), strict=True):
        axes.set_xscale("log")
        axes.set_xlabel(words)
    if values and max(values) > 8 * max(min(values), 1e-12):
        both[0].set_yscale("log")
    else:
        both[0].set_ylim(bottom=0)
    counts = sorted({row.record["evaluations"] for row in rows if row.record["evaluations"]})
    both[0].set_xticks(counts, [str(count) for count in counts])
    both[0].minorticks_off()
    both[1].xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    both[1].xaxis.set_major_formatter("{x:g}")
    both[1].xaxis.set_minor_formatter(NullFormatter())
    both[0].set_ylabel(title)
    both[0].legend()
    return figure


def sample_lines(rows: Sequence[Row], columns: int = 12) -> dict[str, Tensor]:
    """The first images of each row of a model, by title."""
    made = [row for row in rows if row.record["role"] != "samples"]
    count = min([columns, *(len(row.pixels) for row in made)])
    return {title_of(row.record): row.pixels[:count] for row in made} if count else {}
