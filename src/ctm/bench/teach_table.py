"""Tables and the picture of `ctm bench teach`, from its results alone."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ctm.bench.images import STEPS
from ctm.bench.mixture import STEPS as JUMPS
from ctm.bench.ways import REFERENCE, WAYS

__all__ = ["curves", "picture", "report"]

Entries = Mapping[str, Mapping[str, Any]]
_BUDGETS = {"equal_seconds": "seconds", "equal_evaluations": "evaluations of the teacher"}


def report(entries: Entries) -> list[str]:
    """All tables in Markdown, line by line. A part that was not run has none."""
    return [*_mixture_lines(entries), *_image_lines(entries)]


def _mixture_lines(entries: Entries) -> list[str]:
    """A table for each budget, and for each size of it where runs had several."""
    rows = [entry for entry in entries.values() if entry["part"] == "mixture"]
    lines: list[str] = []
    for budget, unit in _BUDGETS.items():
        limits = {id(row): row["budget"][budget.removeprefix("equal_")] for row in rows if budget in row}
        for limit in sorted(set(limits.values()), reverse=True):
            lines += [f"Mixture: error against the exact flow, % of the data's deviation, at {limit:g} {unit}:", ""]
            lines += _header(["way", "seeds", "steps", "seconds", *map(_jumps, JUMPS), "denoiser"])
            for way, runs in _grouped(row for row in rows if limits.get(id(row)) == limit).items():
                found = [run[budget] for run in runs]
                errors = [_mean([100 * run["errors"][str(key)] for run in found], "1f") for key in (*JUMPS, "denoiser")]
                about = [f"{statistics.fmean(run[name] for run in found):,.0f}" for name in ("steps", "seconds")]
                lines.append(_line([way, str(len(runs)), *about, *errors]))
            lines.append("")
    return lines


def _image_lines(entries: Entries) -> list[str]:
    lines: list[str] = []
    for data in _sets(entries):
        teacher = entries[f"images/{data}/teacher"]
        protocol = teacher["protocol"]
        lines += [
            f"{data}: Fréchet distance over {protocol['features']} at {protocol['side']} pixels, {protocol['samples']} samples "
            f"against {protocol['real']} real images. Teacher at {teacher['evaluations']} evaluations: "
            f"{_with_error(teacher['35'])}; half of the real images against the other half: {teacher['floor']:.1f}.",
            "",
        ]
        lines += _header(["way", "minutes", "seeds", "steps", "evaluations", "MiB", *map(_jumps, STEPS)])
        for minutes in sorted({row["minutes"] for row in _rows(entries, data)}):
            ways = _grouped(row for row in _rows(entries, data) if row["minutes"] == minutes)
            for way, runs in ways.items():
                lines.append(_line([way, f"{minutes:g}", str(len(runs)), *_cell_numbers(runs)]))
        lines.append("")
    return lines


def _cell_numbers(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Steps, the teacher's evaluations, memory and the distances at the end of the runs of a way."""
    about = [f"{statistics.fmean(run['steps'] for run in runs):,.0f}"]
    about += [f"{statistics.fmean(run['teacher_evaluations'] for run in runs) / 1e6:.2f} M"]
    about += [f"{max(run['memory_mib'] for run in runs):,.0f}"]
    if any(run["diverged"] for run in runs):
        return [*about, "diverged", *[""] * (len(STEPS) - 1)]
    ends = [run["curve"][-1]["jumps"] for run in runs]
    if len(runs) == 1:
        return [*about, *(_with_error(ends[0][str(steps)]) for steps in STEPS)]
    return [*about, *(_mean([end[str(steps)]["frechet"] for end in ends], "1f") for steps in STEPS)]


def curves(entries: Entries, data: str, jumps: int) -> dict[tuple[str, float], list[tuple[float, float, float]]]:
    """Of each way and budget that was measured at several moments: (seconds, distance, error bar), the mean over seeds. The bar
    is the standard error over seeds, or, of one seed, over blocks of samples."""
    found = {}
    rows = [row for row in _rows(entries, data) if len(row["curve"]) > 1 and not row["diverged"]]
    for minutes in sorted({row["minutes"] for row in rows}):
        for way, runs in _grouped(row for row in rows if row["minutes"] == minutes).items():
            points = []
            for moments in zip(*(run["curve"] for run in runs), strict=True):
                values = [moment["jumps"][str(jumps)]["frechet"] for moment in moments]
                error = moments[0]["jumps"][str(jumps)]["error"] or 0.0
                if len(values) > 1:
                    error = statistics.stdev(values) / math.sqrt(len(values))
                seconds = statistics.fmean(moment["seconds"] for moment in moments)
                points.append((seconds, statistics.fmean(values), error))
            found[way, minutes] = points
    return found


def picture(entries: Entries) -> bytes | None:
    """The results as PNG; None where there are none. First the screen: the error on the mixture and the distance on each set, by
    the number of jumps, of every way with its default settings. Then curves of the distance against seconds: a line of panels for
    each set, a panel for each number of jumps. Dashed: the teacher."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from ctm.evaluation.figures import png

    screens = _screens(entries)
    sets = [data for data in _sets(entries) if curves(entries, data, STEPS[0])]
    if not screens and not sets:
        return None
    lines = [*(["screen"] if screens else []), *sets]
    figure = plt.figure(figsize=(4 * len(STEPS), 4.2 * len(lines)))
    grid = figure.add_gridspec(len(lines), len(STEPS))
    for number, (title, ways) in enumerate(screens.items()):
        width = len(STEPS) // max(1, len(screens))
        _draw_screen(figure.add_subplot(grid[0, number * width : (number + 1) * width]), title, ways)
    for line, data in enumerate(sets, start=len(lines) - len(sets)):
        for column, jumps in enumerate(STEPS):
            axes = figure.add_subplot(grid[line, column])
            for (way, minutes), points in curves(entries, data, jumps).items():
                seconds, values, bars = zip(*points, strict=True)
                axes.errorbar(
                    seconds, values, bars, marker="o", markersize=3, capsize=2, label=f"{way}, {minutes:g} min"
                )
            axes.axhline(entries[f"images/{data}/teacher"]["35"]["frechet"], color="grey", linestyle="--", linewidth=1)
            axes.set(
                xscale="log", yscale="log", xlabel="processor seconds of training", title=f"{data}, {_jumps(jumps)}"
            )
            _plain_numbers(axes)
            if column == 0:
                axes.set_ylabel("Fréchet distance")
                axes.legend(fontsize=7)
    figure.tight_layout()
    return png(figure)


def _screens(entries: Entries) -> dict[str, dict[str, list[float]]]:
    """By title, the values of each way at 1, 2, 4 and 8 jumps: the mixture at equal seconds, and each set's cells that were
    measured once, of the teacher under "teacher"."""
    found: dict[str, dict[str, list[float]]] = {}
    mixture = _grouped(row for row in entries.values() if row["part"] == "mixture" and _is_default(row))
    if mixture:
        errors = {way: [run["equal_seconds"]["errors"] for run in runs] for way, runs in mixture.items()}
        found["mixture: error against the flow, % of the deviation"] = {
            way: [100 * statistics.fmean(run[str(jumps)] for run in runs) for jumps in JUMPS]
            for way, runs in errors.items()
        }
    for data in _sets(entries):
        once = [
            row for row in _rows(entries, data) if len(row["curve"]) == 1 and _is_default(row) and not row["diverged"]
        ]
        if once:
            ends = {way: [run["curve"][-1]["jumps"] for run in runs] for way, runs in _grouped(once).items()}
            ways = {
                way: [statistics.fmean(run[str(jumps)]["frechet"] for run in runs) for jumps in STEPS]
                for way, runs in ends.items()
            }
            teacher = entries[f"images/{data}/teacher"]["35"]["frechet"]
            minutes = sorted({row["minutes"] for row in once})
            title = f"{data}: Fréchet distance after {', '.join(f'{value:g}' for value in minutes)} minutes"
            found[title] = {**ways, "teacher": [teacher] * len(STEPS)}
    return found


def _is_default(row: Mapping[str, Any]) -> bool:
    """Whether its way has its default settings: a tried one is called after its way and a stroke."""
    return "/" not in row["way"]


def _draw_screen(axes: Any, title: str, ways: Mapping[str, Sequence[float]]) -> None:
    known = [REFERENCE, *WAYS]
    for way, values in ways.items():
        number = known.index(way) if way in known else len(known)  # the same look in every panel
        look = {"color": f"C{number % 10}", "marker": "os^Dv<>"[number % 7], "linestyle": "-" if number < 10 else ":"}
        if way == "teacher":
            look = {"color": "grey", "linestyle": "--"}
        axes.plot(JUMPS, values, label=way, markersize=4, **look)
    axes.set(xscale="log", yscale="log", xlabel="jumps", title=title)
    _plain_numbers(axes)
    axes.set_xticks(JUMPS, [str(jumps) for jumps in JUMPS])
    axes.xaxis.minorticks_off()
    axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.0, 1.0))


def _plain_numbers(axes: Any) -> None:
    """Ticks on logarithmic axes as whole numbers, of which few overlap."""
    from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter

    axes.xaxis.set_major_formatter(FormatStrFormatter("%g"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(FormatStrFormatter("%g"))
    wide = axes.dataLim.intervaly[1] > 8 * axes.dataLim.intervaly[0]
    axes.yaxis.set_minor_locator(LogLocator(subs=(2.0, 5.0) if wide else (1.5, 2, 3, 4, 5, 6, 7, 8, 9)))
    axes.yaxis.set_minor_formatter(FormatStrFormatter("%g"))


def _sets(entries: Entries) -> list[str]:
    return list(dict.fromkeys(row["data"] for row in entries.values() if row["part"] == "images"))


def _rows(entries: Entries, data: str) -> list[Mapping[str, Any]]:
    """The cells of a set."""
    return [
        row for row in entries.values() if row["part"] == "images" and row["data"] == data and row["way"] != "teacher"
    ]


def _grouped(rows: Iterable[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    found: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        found.setdefault(row["way"], []).append(row)
    return found


def _mean(values: Sequence[float], form: str) -> str:
    """Mean ± standard error of several seeds."""
    mean = f"{statistics.fmean(values):.{form}}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values) / math.sqrt(len(values)):.{form}}"


def _with_error(number: Mapping[str, Any]) -> str:
    return f"{number['frechet']:.1f}" + ("" if number["error"] is None else f" ± {number['error']:.1f}")


def _jumps(count: int) -> str:
    return "1 jump" if count == 1 else f"{count} jumps"


def _header(columns: Sequence[str]) -> list[str]:
    return [_line(columns), "|---|" + "--:|" * (len(columns) - 1)]


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
