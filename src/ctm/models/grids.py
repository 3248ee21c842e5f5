"""Grids tuned for a model and a number of steps, as config.json keeps them under "grids"."""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from ctm.arguments import as_float_type
from ctm.foreign.text import plain

__all__ = ["TunedGrid", "grids_as_json", "read_grids", "tuned_for"]


_LARGEST = sys.float_info.max  # whole numbers of a file may be larger


@dataclass(frozen=True)
class TunedGrid:
    """The result of `ctm.tune_grid`.

    levels: the steps + 1 noise levels, falling. gamma: of γ-sampling on them. measure: name of what was minimised. before
    (plain Karras grid) and after: the measure on noise (and images, if any) that tuning has not seen, each with one standard
    error (None if measured once). gain = 1 − after/before, with the standard error of the pairs."""

    levels: tuple[float, ...]
    gamma: float
    measure: str
    before: float
    before_error: float | None
    after: float
    after_error: float | None
    gain: float
    gain_error: float | None

    def __post_init__(self) -> None:
        if len(self.levels) < 2 or not all(math.isfinite(level) and level > 0 for level in self.levels):
            raise ValueError(f"a grid holds at least two finite levels above 0, got {list(self.levels)[:8]}")
        if any(later >= level for level, later in itertools.pairwise(self.levels)):
            raise ValueError(f"a grid's levels must decrease strictly, got {list(self.levels)[:8]}")
        numbers = (self.gamma, self.before, self.before_error, self.after, self.after_error, self.gain, self.gain_error)
        if (
            not all(
                number is None or type(number) is float or (type(number) is int and abs(number) <= _LARGEST)
                for number in numbers
            )
            or type(self.measure) is not str
        ):
            raise ValueError("a grid's gamma, measure and numbers must be numbers and a text")
        if not 0 <= self.gamma <= 1:
            raise ValueError(f"gamma must be in [0, 1], got {self.gamma}")

    @property
    def steps(self) -> int:
        return len(self.levels) - 1

    @property
    def better(self) -> bool:
        """Whether the gain on what tuning has not seen is more than two standard errors."""
        return self.gain > 2 * (self.gain_error or 0.0)

    def grid(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The levels as a tensor (steps + 1,), for samplers. Raises ValueError for a dtype of whole numbers."""
        return torch.tensor(self.levels, dtype=as_float_type(dtype))


def tuned_for(model: object, steps: int, gamma: float | None) -> TunedGrid | None:
    """The grid that the model keeps for this number of steps, if γ is not given or is the grid's own. None for a model
    without one."""
    grids: Mapping[int, TunedGrid] = getattr(model, "grids", None) or {}
    found = grids.get(steps)
    return found if found is not None and gamma in (None, found.gamma) else None


def grids_as_json(grids: Mapping[int, TunedGrid]) -> dict[str, object]:
    """The entry of config.json: {"2": {"levels": […], "gamma": …, …}, …}."""
    return {str(steps): asdict(grids[steps]) for steps in sorted(grids)}


def read_grids(entry: Any, sigma_min: float, sigma_max: float, place: str) -> dict[int, TunedGrid]:
    """The grids in config.json's entry, by their number of steps. place: of the file, for the sentence.

    Raises ValueError for a grid that is damaged, has another number of steps than its name says, or does not lead from
    sigma_max to sigma_min."""
    grids: dict[int, TunedGrid] = {}
    try:
        for name, values in entry.items():
            grid = TunedGrid(**{**values, "levels": tuple(float(level) for level in values["levels"])})
            ends = math.isclose(grid.levels[0], sigma_max, rel_tol=1e-6) and math.isclose(
                grid.levels[-1], sigma_min, rel_tol=1e-6
            )
            if int(name) != grid.steps or not ends:
                raise ValueError(
                    f"for {name} steps it needs {int(name) + 1} levels from {sigma_max} to {sigma_min}, "
                    f"got {list(grid.levels)[:8]}"
                )
            grids[grid.steps] = grid
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise ValueError(
            f'{place}: the "grids" in config.json are damaged: {plain(str(error), 300)}. Tune them again '
            "(ctm tune), or take the entry out"
        ) from error
    return grids
