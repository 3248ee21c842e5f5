"""Draw fields from the same noise by closed form, teacher and CTM, their spectra, and fields that fit 40 measured cells.

Usage: python -m examples.fields.figures TEACHER CTM docs/fields
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import torch
from examples.fields.gaussian import GaussianFields
from examples.fields.measure import LEVELS, ONE, bands, problems, rows_of, walks
from examples.fields.posterior import given
from matplotlib import pyplot
from torch import Tensor

from ctm import load_model
from ctm.editing import replace, solve_guided

SCALES = (1.5, 3.0, 6.0)


def show(axis: pyplot.Axes, field: Tensor, limit: float, title: str = "") -> None:
    """The first channel of a field (C, H, W), from −limit to limit."""
    axis.imshow(field[0], cmap="RdBu_r", vmin=-limit, vmax=limit)
    axis.set(xticks=[], yticks=[])
    axis.set_title(title, fontsize=7)


def same_noise(exact: GaussianFields, ways: dict, out: Path) -> None:
    """A row for each length scale, a column for each way, all from the same noise."""
    noise = 80 * torch.randn(1, *exact.shape, generator=torch.Generator().manual_seed(3))
    figure, axes = pyplot.subplots(len(SCALES), len(ways) + 1, figsize=(8, 3.4), layout="constrained")
    for line, scale in zip(axes, SCALES, strict=True):
        condition = rows_of(1, length_scale=scale, variance=1.0)
        true = exact.jump(noise.double(), 80.0, 0.002, condition)
        show(line[0], true[0], 1.5, f"closed form, ℓ = {scale:g}")
        for axis, (name, walk) in zip(line[1:], ways.items(), strict=True):
            show(axis, walk(noise, 80.0, condition)[0], 1.5, name)
    figure.savefig(out / "same-noise.png", dpi=110)


def spectra(exact: GaussianFields, ways: dict, out: Path, num: int = 64) -> None:
    """Power a wave in each band of wave numbers: lines are exact, marks are samples."""
    figure, axis = pyplot.subplots(figsize=(5, 3.4), layout="constrained")
    masks = bands(exact.shape, (0.0, 0.12, 0.2, 0.3, 0.45, 0.7, 1.0, 1.5, 2.2, 3.2, 4.5))
    _, height, width = exact.shape
    i, j = torch.arange(height) / height, torch.arange(width) / width
    wave = torch.pi * (i[:, None] ** 2 + j**2).sqrt()
    places = [float(wave[mask].mean().clamp(min=0.04)) for mask in masks]
    for scale in SCALES:
        condition = rows_of(num, length_scale=scale, variance=1.0)
        lines = exact.variances(condition)[0].sum(dim=0)
        axis.loglog(places, [float(lines[mask].mean()) for mask in masks], "k-", linewidth=0.8)
        noise = 80 * torch.randn(num, *exact.shape, generator=torch.Generator().manual_seed(4))
        for number, (name, walk) in enumerate(ways.items()):
            samples = exact.modes(walk(noise, 80.0, condition).double() - exact.offset[:, None, None])
            power = samples.square().mean(dim=0).sum(dim=0)
            label = name if scale == SCALES[0] else None
            look = {
                "marker": "ox+^"[number],
                "color": f"C{number}",
                "linestyle": "",
                "fillstyle": "none",
                "markersize": 4,
            }
            axis.loglog(places, [float(power[mask].mean()) for mask in masks], label=label, **look)
    axis.set(xlabel="wave number |k| (first mark: 0)", ylabel="power of a wave, both channels")
    axis.legend(fontsize=7)
    figure.savefig(out / "spectra.png", dpi=110)


def restored(exact: GaussianFields, student: torch.nn.Module, out: Path, num: int = 32) -> None:
    """Truth, what is measured, the posterior's mean, draws, and the deviation of each cell, exact and by the CTM."""
    operator, condition = problems(exact)["points"], rows_of(num, **ONE)
    truth = exact.sample(rows_of(1, **ONE), seed=7)
    y = operator.A(truth)
    law = given(exact, operator, y, ONE)
    many = y.float().expand(num, *exact.shape)
    options = {"clamp": False, "condition": condition}
    ways = {
        "exact": law.sample(num, seed=8),
        "replace": replace(student, operator, many, grid=LEVELS.float(), rounds=40, **options),
        "solve_guided": solve_guided(student, operator, many, steps=18, jumps=True, **options),
    }
    figure, axes = pyplot.subplots(3, 4, figsize=(8, 3.9), layout="constrained")
    for line, (name, samples) in zip(axes, ways.items(), strict=True):
        show(line[1], samples[0], 1.5, f"a draw: {name}")
        show(line[2], samples.double().mean(dim=0), 1.5, f"mean of {num}: {name}")
        show(line[3], samples.double().std(dim=0), 0.6, f"deviation of {num}: {name}")
    show(axes[0][0], truth[0], 1.5, "truth")
    show(axes[1][0], torch.where(y[0] != 0, y[0], torch.nan), 1.5, "measured: 40 cells")
    show(axes[2][0], law.mean.reshape(exact.shape), 1.5, "posterior mean, closed form")
    figure.savefig(out / "posterior.png", dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teacher")
    parser.add_argument("student")
    parser.add_argument("out", type=Path)
    settings = parser.parse_args()
    settings.out.mkdir(parents=True, exist_ok=True)
    teacher, student = load_model(settings.teacher), load_model(settings.student)
    exact, ways = GaussianFields().scaled(teacher.scaling), walks(teacher, student)
    same_noise(exact, ways, settings.out)
    spectra(exact, ways, settings.out)
    restored(exact, student, settings.out)


if __name__ == "__main__":
    main()
