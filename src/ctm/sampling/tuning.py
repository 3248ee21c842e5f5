"""The time grid, and γ, for a given number of steps on a given model, chosen by measuring its samples."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from ctm.arguments import as_count, as_seed, words_for
from ctm.conditions import Condition, with_field
from ctm.models.grids import TunedGrid
from ctm.models.protocol import Diffusion, can_jump, taken_by
from ctm.noise import karras_grid
from ctm.sampling.generation import class_labels, generate
from ctm.sampling.jumps import as_gamma
from ctm.sampling.ode import heun

__all__ = ["FlowDistance", "GridMeasure", "tune_grid"]

_SPACING = 1.2  # of the levels at which a new one is tried, in ln σ
_NARROWING = 4  # evaluations of each search along one level
_SWEEPS = 3
_NOT_FINITE = 1e100  # for scipy, which takes differences of the values


class GridMeasure(Protocol):
    """What `tune_grid` makes small. name: what it is, in a few words."""

    name: str

    def __call__(self, levels: Tensor, gamma: float, *, held_out: bool) -> Tensor:
        """Independent repeats (k,) of the measured value of γ-sampling on `levels` (n,), n ≥ 3, the mean of which counts.

        The same random numbers for every grid, so that repeats of two grids are pairs; others where held_out."""
        ...


class FlowDistance:
    """Mean squared distance, a value, of γ = 0 samples to the flow of a denoiser from the same noise: (k,), one for each sample.

    The flow is Heun's method on 40 Karras levels of the model's own denoiser, or of the teacher's. Noise and classes of
    tuning are those of `seed`, of the held-out samples those of seed + 1. fields: of the samples' conditions, (N, …) each: tuning
    takes the rows in turn, the held-out samples those after. A teacher gets what it knows of them. Raises ValueError for a
    teacher of another shape."""

    def __init__(
        self,
        model: Diffusion,
        teacher: Diffusion | None = None,
        *,
        num: int = 256,
        held_out: int = 1024,
        seed: int = 0,
        levels: int = 40,
        fields: Mapping[str, Tensor] | None = None,
    ) -> None:
        if teacher is not None and tuple(teacher.shape) != tuple(model.shape):
            raise ValueError(
                f"the teacher's samples are {tuple(teacher.shape)} and the model's {tuple(model.shape)}: give its own teacher"
            )
        why = "a distance to the flow needs two samples"
        num, held_out = as_count(num, "num", 2, why=why), as_count(held_out, "held_out", 2, why=why)
        seed, levels = as_seed(seed), as_count(levels, "levels", 2)
        self.model, self.teacher, self._fields = model, teacher, fields or {}
        self.name = f"mean squared distance to the {'model' if teacher is None else 'teacher'}'s flow"
        self._counts, self._seed, self._levels = (num, held_out), seed, levels
        self._flows: dict[bool, Tensor] = {}

    def __call__(self, levels: Tensor, gamma: float, *, held_out: bool) -> Tensor:
        if gamma != 0:
            raise ValueError(
                f"the distance to the flow is of samples without added noise, γ = 0, and γ here is {gamma}"
            )
        samples = self._generate(self.model, held_out, grid=levels, gamma=0.0)
        return (samples.double() - self._flow(held_out)).square().flatten(1).mean(dim=1)

    def _flow(self, held_out: bool) -> Tensor:
        if held_out not in self._flows:
            grid = karras_grid(self._levels - 1, self.model.sigma_min, self.model.sigma_max)
            source = self.model if self.teacher is None else self.teacher
            self._flows[held_out] = self._generate(source, held_out, grid=grid, sampler=heun).double()
        return self._flows[held_out]

    def _generate(self, source: Diffusion, held_out: bool, **options: Any) -> Tensor:
        num, seed = self._counts[held_out], self._seed + held_out
        condition: Condition = class_labels(self.model, num, None, seed)
        for name, values in self._fields.items():
            rows = (torch.arange(num) + self._counts[0] * held_out) % len(values)
            condition = with_field(condition, name, values[rows])
        return generate(source, num, condition=taken_by(source, condition), seed=seed, batch_size=256, **options)


def tune_grid(
    model: Diffusion,
    steps: int,
    *,
    measure: GridMeasure | Literal["flow"] = "flow",
    gammas: Sequence[float] = (0.0,),
    progress: Callable[[int, float], object] | None = None,
) -> TunedGrid:
    """The levels and the γ of `steps` jumps for which the measure is smallest, beside the plain Karras grid at gammas[0].

    measure: "flow" for `FlowDistance(model)`, or any `GridMeasure`, e.g. `ctm.evaluation.frechet_measure.FrechetMeasure`.
    gammas: tried in turn, each with levels of its own. progress(evaluations, best) after each evaluation of the measure.

    A level is added at a time, at the best of places even in ln σ, and all levels are then moved in turn by Brent's
    search, until a round gains less than 0.3 %: some 20 evaluations for 2 steps and 90 for 4, for each γ. The grid is
    the Karras grid itself where nothing better was found. Before, after and gain are of the held-out repeats.
    To use it: model.grids[steps] = the result, and save_pretrained; or `ctm tune`. Raises ValueError for steps < 2, a
    model without jump and gammas outside [0, 1]."""
    steps = as_count(steps, "steps", 2, why="one jump has no level to choose")
    if not can_jump(model):
        raise ValueError(f"{type(model).__name__} has no jump, only denoise: grids are tuned for jumps")
    if isinstance(gammas, str | bytes | Set | Mapping) or not hasattr(gammas, "__len__") or len(gammas) == 0:
        raise ValueError(f"gammas must be numbers in [0, 1] in an order, at least one, got {words_for(gammas)}")
    gammas = [as_gamma(gamma, "gammas") for gamma in gammas]
    if measure == "flow":
        measure = FlowDistance(model)
    elif not callable(measure):
        raise ValueError(f"measure must be 'flow' or a GridMeasure, got {words_for(measure)}")
    search = _Search(measure, float(model.sigma_min), float(model.sigma_max), progress)
    plain = karras_grid(steps, model.sigma_min, model.sigma_max, dtype=torch.float64).tolist()
    found = {gamma: search.tuned(steps, gamma) for gamma in dict.fromkeys(gammas)}
    gamma = min(found, key=lambda each: search(found[each], each))
    if search(found[gamma], gamma) < search(plain[1:-1], gammas[0]):
        return _judged(measure, plain, gammas[0], search.grid(found[gamma]), gamma)
    return _judged(measure, plain, gammas[0], plain, gammas[0])


class _Search:
    """The measure on the tuning noise as a function of the inner levels, each grid measured once."""

    def __init__(
        self,
        measure: GridMeasure,
        sigma_min: float,
        sigma_max: float,
        progress: Callable[[int, float], object] | None,
    ) -> None:
        self.measure, self.low, self.high, self.progress = measure, sigma_min, sigma_max, progress
        self.known: dict[tuple[tuple[float, ...], float], float] = {}

    def grid(self, inner: Sequence[float]) -> list[float]:
        """The whole grid: inner levels to four digits."""
        return [self.high, *(float(f"{level:.4g}") for level in inner), self.low]

    def __call__(self, inner: Sequence[float], gamma: float) -> float:
        levels = self.grid(inner)
        key = (tuple(levels), gamma)
        if key not in self.known:
            if any(later >= level for level, later in itertools.pairwise(levels)):
                return math.inf
            value = float(self.measure(torch.tensor(levels), gamma, held_out=False).mean())
            self.known[key] = value if math.isfinite(value) else math.inf
            if self.progress is not None:
                self.progress(len(self.known), min(self.known.values()))
        return self.known[key]

    def tuned(self, steps: int, gamma: float) -> list[float]:
        """The inner levels for so many steps: one added at a time, all moved after each."""
        inner: list[float] = []
        for _ in range(steps - 1):
            inner = min(self._with_one_more(inner), key=lambda levels: self(levels, gamma))
            inner = self._moved(inner, gamma)
        return inner

    def _with_one_more(self, inner: list[float]) -> list[list[float]]:
        """The grids with a level more, at places even in ln σ in each gap, two or more of them."""
        found = []
        for place, (above, below) in enumerate(itertools.pairwise([self.high, *inner, self.low])):
            count = max(2, round(math.log(above / below) / _SPACING))
            for share in range(1, count):
                level = above * (below / above) ** (share / count)
                found.append([*inner[:place], level, *inner[place:]])
        return found

    def _moved(self, inner: list[float], gamma: float) -> list[float]:
        """Each level in turn moved to where the measure is smallest, as long as that helps."""
        best = self(inner, gamma)
        reach = _SPACING
        for _ in range(_SWEEPS):
            before = best
            for place in range(len(inner)):
                inner = self._narrowed(inner, place, gamma, reach)
            best, reach = self(inner, gamma), reach / 2
            if best > before * 0.997:
                break
        return inner

    def _narrowed(self, inner: list[float], place: int, gamma: float, reach: float) -> list[float]:
        """Brent's search along one level in ln σ, within `reach` of it and half-way to its neighbours."""
        from scipy.optimize import minimize_scalar  # here, because no sampler needs scipy

        whole = [math.log(level) for level in (self.high, *inner, self.low)]
        here = whole[place + 1]
        bounds = max(here - reach, (here + whole[place + 2]) / 2), min(here + reach, (here + whole[place]) / 2)
        tried = [inner]

        def measured(position: float) -> float:
            tried.append([*inner[:place], math.exp(position), *inner[place + 1 :]])
            return min(self(tried[-1], gamma), _NOT_FINITE)

        minimize_scalar(measured, bounds=bounds, method="bounded", options={"maxiter": _NARROWING})
        return min(tried, key=lambda levels: self(levels, gamma))


def _judged(
    measure: GridMeasure, plain: Sequence[float], plain_gamma: float, levels: Sequence[float], gamma: float
) -> TunedGrid:
    """The grid with what it gains over the plain one on what tuning has not seen."""
    same = (list(levels), gamma) == (list(plain), plain_gamma)
    before = measure(torch.tensor(plain), plain_gamma, held_out=True).double()
    after = before if same else measure(torch.tensor(levels), gamma, held_out=True).double()
    whole = before.mean().clamp(min=torch.finfo(torch.float64).tiny)
    ratio = float(after.mean() / whole)
    pairs = (after - ratio * before) / whole
    errors = [_error(values) for values in (before, after, pairs)]
    means = float(before.mean()), float(after.mean())
    return TunedGrid(tuple(levels), gamma, measure.name, means[0], errors[0], means[1], errors[1], 1 - ratio, errors[2])


def _error(values: Tensor) -> float | None:
    """sd/√k of independent values (k,), None for one."""
    return float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else None
