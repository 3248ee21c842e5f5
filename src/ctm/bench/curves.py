"""Curves of quality against the number of evaluations, from the entries of `ctm bench samplers`, with a table and a picture."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from ctm.bench.cells import NAMES
from ctm.evaluation.number import Number

__all__ = ["Curve", "curves", "picture", "table"]

_JUMPS = ("gamma", "gamma_code")
_TITLES = {"gamma_code": "code's form, ", "heun_churn": "heun with churn"}


@dataclass(frozen=True)
class Curve:
    """Distances of one sampler by number of evaluations, one for each seed, and the error bar of each by blocks of samples."""

    sampler: str
    gamma: float | None
    values: dict[int, list[float]]
    errors: dict[int, list[float | None]]

    @property
    def title(self) -> str:
        title = _TITLES.get(self.sampler, "" if self.gamma is not None else self.sampler)
        return title if self.gamma is None else f"{title}γ = {self.gamma:g}"

    def number(self, evaluations: int) -> Number:
        """The mean over seeds with its standard error: from the scatter of the seeds, or, for one seed, from blocks of its
        samples."""
        values = self.values[evaluations]
        if len(values) == 1:
            return Number(values[0], self.errors[evaluations][0])
        return Number(statistics.fmean(values), statistics.stdev(values) / math.sqrt(len(values)))


def curves(entries: Iterable[dict[str, Any]]) -> list[Curve]:
    """The entries as curves, γ-sampling first. A single jump adds no noise and is on the curve of every γ."""
    rows = sorted(entries, key=lambda row: (row["evaluations"], row["seed"]))
    found = []
    names = [*NAMES, *sorted({row["sampler"] for row in rows} - {*NAMES})]  # peers stand last
    for number, gamma in sorted({(names.index(row["sampler"]), row["gamma"] or 0.0) for row in rows}):
        name = names[number]
        values: dict[int, list[float]] = {}
        errors: dict[int, list[float | None]] = {}
        for row in rows:
            single = name in _JUMPS and row["sampler"] in _JUMPS and row["evaluations"] == 1
            if single or (row["sampler"] == name and (row["gamma"] or 0.0) == gamma):
                values.setdefault(row["evaluations"], []).append(row["frechet"])
                errors.setdefault(row["evaluations"], []).append(row["error"])
        found.append(Curve(name, gamma if name in _JUMPS else None, values, errors))
    return found


def table(about: dict[str, Any], found: Sequence[Curve]) -> Table:
    """A table with a row for each curve and a column for each number of evaluations."""
    columns = sorted({count for curve in found for count in curve.values})
    protocol = about["protocol"]
    result = Table(
        title=f"Fréchet distance ({protocol['features']['name']}) by evaluations; {about['model']}, {protocol['images']} samples "
        f"against {protocol['reference']['images']} of {protocol['reference']['name']}"
    )
    result.add_column("sampler")
    for count in columns:
        result.add_column(str(count), justify="right")
    for curve in found:
        cells = [str(curve.number(count)) if count in curve.values else "" for count in columns]
        result.add_row(curve.title, *cells)
    return result


def picture(about: dict[str, Any], found: Sequence[Curve]) -> bytes:
    """Distance against evaluations as PNG. Left: γ-sampling. Right: its extremes beside the other samplers."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from ctm.evaluation.figures import png

    jumps = [curve for curve in found if curve.sampler == "gamma"]
    codes = [curve for curve in found if curve.sampler == "gamma_code"]
    others = [curve for curve in found if curve.gamma is None]
    gammas = sorted({curve.gamma for curve in (*jumps, *codes) if curve.gamma is not None})
    colours = {gamma: plt.get_cmap("viridis")(0.9 * i / max(1, len(gammas) - 1)) for i, gamma in enumerate(gammas)}
    figure, panels = plt.subplots(1, 2, figsize=(12, 4.8))
    for axes, shown in zip(panels, ([*jumps, *codes], [*(jumps[:1] + jumps[1:][-1:]), *others]), strict=True):
        for index, curve in enumerate(shown):
            look: dict[str, object] = {"linestyle": ":" if curve.sampler == "gamma_code" else "-"}
            look["color"] = colours[curve.gamma] if curve.gamma is not None else f"C{index}"
            _draw(axes, curve, look)
        _finish(axes, {count for curve in shown for count in curve.values})
    panels[0].set_title("γ-sampling by jumps")
    panels[1].set_title("beside samplers on the same model's denoiser")
    panels[0].set_ylabel(f"Fréchet distance ({about['protocol']['features']['name']})")
    return png(figure)


def _draw(axes: Any, curve: Curve, look: dict[str, Any]) -> None:
    """One curve with its error bars."""
    counts = sorted(curve.values)
    numbers = [curve.number(count) for count in counts]
    bars = [number.error or 0.0 for number in numbers]
    look |= {"label": curve.title, "marker": "o", "markersize": 4, "capsize": 2}
    axes.errorbar(counts, [number.value for number in numbers], bars, **look)


def _finish(axes: Any, counts: set[int]) -> None:
    """Give the plot a logarithmic axis of evaluations with a tick at each power of two, and a logarithmic axis of distances
    if they lie far apart."""
    axes.set_xscale("log", base=2)
    ticks = [2**power for power in range(max(counts, default=1).bit_length())]
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.set_xlabel("evaluations of the network")
    if not axes.has_data():
        return
    low, high = axes.dataLim.intervaly
    if high > 4 * max(low, 1e-12):
        axes.set_yscale("log")
    axes.legend(fontsize=8)
