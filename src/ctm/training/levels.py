"""The noise levels of a run's model and the deviation of its data: as the recipe says, else as the models have them that it comes
from, else measured."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ctm.data import Dataset, Images, Values
from ctm.data.latents import Latents
from ctm.models.protocol import Diffusion, RangedDenoiser
from ctm.training.recipe import ModelSettings

__all__ = ["Levels", "measured_deviation", "settle_levels"]

_MOST = 1_000_000_000  # bytes of pixels that are looked at: a larger set is measured on a seeded draw of its images
_BLOCK = 1 << 21
_DEFAULT = {"sigma_min": 0.002, "sigma_max": 80.0}
_NAMES = ("sigma_min", "sigma_max", "sigma_data")
_SLACK = 1e-6  # levels that were kept in float32


@dataclass(frozen=True)
class Levels:
    """Ends of the noise levels and the data's standard deviation, of the model to be trained."""

    sigma_min: float
    sigma_max: float
    sigma_data: float


def measured_deviation(images: Dataset, most: int = _MOST) -> tuple[float, int]:
    """The standard deviation of all pixel values of a set in [-1, 1], to four digits after the point, and of how many images.

    Sums of whole numbers, so that it is the same on every machine and in every process. A set of more than `most` bytes is
    measured on as many of its images as have that, drawn with seed 0. Of values that are no pictures it is that of all once they
    are scaled, from what was summed when they were read. Raises ValueError where all values are equal."""
    if isinstance(images, Values):
        return _of_values(images), len(images)
    if isinstance(images, Latents):
        return images.deviation(), len(images)
    assert isinstance(images, Images)
    count = max(1, min(len(images), most // max(images.pixels[0].nbytes, 1)))
    chosen = np.arange(len(images))
    if count < len(images):
        chosen = np.sort(np.random.default_rng(0).choice(len(images), count, replace=False))
    histogram = np.zeros(256, dtype=np.int64)
    rows = max(1, _BLOCK // max(images.pixels[0].nbytes, 1))
    for start in range(0, count, rows):
        histogram += np.bincount(images.pixels[chosen[start : start + rows]].reshape(-1), minlength=256)
    values = [int(v) for v in histogram]
    total, first = sum(values), sum(v * n for v, n in enumerate(values))
    second = sum(v * v * n for v, n in enumerate(values))
    variance = (second * total - first * first) / total**2
    deviation = round(variance**0.5 / 127.5, 4)
    if deviation <= 0:
        raise ValueError(
            f"all pixels of {images.name or 'the data'} have the same value, so that there is no standard deviation to be "
            "measured: look at the data, or give --model.sigma_data"
        )
    return deviation, count


def _of_values(values: Values) -> float:
    deviation = round(values.moments.deviation(values.scaled), 4)
    if deviation <= 0:
        raise ValueError(
            f"all numbers of {values.name or 'the data'} are nearly equal as they are scaled, so that there is no standard "
            "deviation to be measured: set data.scaling to standard, or give --model.sigma_data"
        )
    return deviation


def settle_levels(
    settings: ModelSettings,
    images: Dataset,
    *,
    teacher: Diffusion | None = None,
    student: Diffusion | None = None,
    copies: bool = True,
) -> tuple[Levels, list[str]]:
    """The levels of the model that is to be trained, and lines that say where those not given come from.

    settings: sigma_min, sigma_max and sigma_data of the recipe's model, None where they are not given. student: the model whose
    weights it starts from; its levels are kept. teacher: may have a wider range of levels, not a narrower one. copies: whether
    the teacher's weights start the student, which then must have the teacher's sigma_data, or it would be another function.
    Raises ValueError naming both values where they do not go together."""
    stated = {name: getattr(settings, name) for name in _NAMES if getattr(settings, name) is not None}
    lines: list[str] = []
    source, words = (student, "the starting student") if student is not None else (teacher, "the teacher")
    if source is not None:
        own = {name: float(getattr(source, name)) for name in _NAMES}
        taken = [name for name in _NAMES if name not in stated]
        if taken:
            lines.append(f"{', '.join(f'{name} {own[name]:g}' for name in taken)}: {words}'s")
        for name in _NAMES if student is not None else (("sigma_data",) if copies else ()):
            _refuse_other(name, stated, own, words)
        levels = own | stated
    else:
        levels = _DEFAULT | stated
        if "sigma_data" not in levels:
            levels["sigma_data"], count = measured_deviation(images)
            pictures = isinstance(images, Images) and not isinstance(images, Latents)
            what = "images in [-1, 1]" if pictures else "items as the model learns them"
            of = f"all {count}" if count == len(images) else f"{count} (drawn with seed 0) of the {len(images)}"
            lines.append(f"sigma_data {levels['sigma_data']:g}: measured, the standard deviation of {of} {what}")
    if teacher is not None:
        _refuse_outside(levels, teacher)
    return Levels(**{name: float(levels[name]) for name in _NAMES}), lines


def _differ(a: float, b: float) -> bool:
    return abs(a - b) > _SLACK * abs(b)


def _refuse_other(name: str, stated: dict[str, float], own: dict[str, float], words: str) -> None:
    if name in stated and _differ(stated[name], own[name]):
        raise ValueError(
            f"model.{name} is {stated[name]:g}, and {words}'s is {own[name]:g}: with another {name} its weights are another "
            f"function. Leave model.{name} unset (where a recipe sets it, --model.{name} null) to take {words}'s"
            + (", or start from random weights: --start_from random" if words == "the teacher" else "")
        )


def _refuse_outside(levels: dict[str, float], teacher: RangedDenoiser) -> None:
    low, high = float(teacher.sigma_min), float(teacher.sigma_max)
    if levels["sigma_min"] < low * (1 - _SLACK) or levels["sigma_max"] > high * (1 + _SLACK):
        raise ValueError(
            f"the student's noise levels, {levels['sigma_min']:g} to {levels['sigma_max']:g}, go beyond those that the teacher "
            f"has learned, {low:g} to {high:g}: set model.sigma_min and model.sigma_max within them, or leave them unset (where "
            "a recipe sets them, --model.sigma_min null --model.sigma_max null) to take the teacher's"
        )
