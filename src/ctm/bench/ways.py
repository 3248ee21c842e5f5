"""The ways to teach a jump that `ctm bench teach` compares. A way is one entry of `WAYS`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ctm.objectives import (
    DenoisingScoreMatching,
    DistributionMatching,
    Eulerian,
    Lagrangian,
    LognormalPairs,
    Matching,
    MultistepWalk,
    Objective,
    PseudoHuber,
    SameNoise,
    Semigroup,
    ShrinkingGap,
)

__all__ = ["REFERENCE", "WAYS", "Place", "Way", "chosen", "in_words"]

REFERENCE = "reference"


@dataclass(frozen=True)
class Place:
    """Where a way is tried. grid: the settings of `Matching` that give it its levels. steps: about as many steps as the budget
    allows, for what a way changes in the course of training."""

    grid: Mapping[str, Any] = field(default_factory=dict)
    steps: int = 10**9

    def share(self, part: float) -> int:
        """The step after that part of all steps, at least 1."""
        return max(1, int(part * self.steps))


@dataclass(frozen=True)
class Way:
    """make: its objectives at a place, beside which `DenoisingScoreMatching` stands. source: arXiv numbers. rate: by what it
    multiplies the learning rate. gamma: of the sampler with more than one jump: 0, or 1 where only jumps to the end are taught.
    by_steps: whether `make` looks at `Place.steps`. on_mixture: whether it can learn from a teacher without weights. tried: a
    setting of another way that was tried, and is no default."""

    make: Callable[[Place], list[Objective]]
    source: str
    rate: float = 1.0
    gamma: float = 0.0
    by_steps: bool = False
    on_mixture: bool = True
    tried: bool = False

    def objectives(self, place: Place) -> list[Objective]:
        """All its objectives at a place; the first is what the others are balanced with."""
        return [*self.make(place), DenoisingScoreMatching()]


def _matching(**settings: Any) -> Callable[[Place], list[Objective]]:
    return lambda place: [Matching(**{**place.grid, **settings})]


def _points(place: Place) -> dict[str, Any]:
    return {"grid_points": place.grid["grid_points"]}


def _local(place: Place) -> list[Objective]:
    return [Matching(kind="local", **_points(place))]


def _global(place: Place) -> list[Objective]:
    return [Matching(kind="global", **_points(place))]


def _distillation(place: Place) -> list[Objective]:
    return [Matching(kind="local", s="end", target_inner="target", **_points(place))]


def _tuning(**settings: Any) -> Callable[[Place], list[Objective]]:
    """Consistency tuning: eight stages in the first 0.8 of the steps."""

    def make(place: Place) -> list[Objective]:
        times = ShrinkingGap(every=place.share(0.1))
        options = {"solver": SameNoise(), "distance": PseudoHuber(), "target_inner": "student", "gap_power": 1.0}
        return [Matching(kind="local", times=times, **{**options, **settings})]

    return make


def _eulerian(warmup: float, **settings: Any) -> Callable[[Place], list[Objective]]:
    return lambda place: [Eulerian(warmup=place.share(warmup), **settings)]


def _with_distribution(start: float, **settings: Any) -> Callable[[Place], list[Objective]]:
    return lambda place: [
        Matching(**place.grid, solver=MultistepWalk()),
        DistributionMatching(start=place.share(start), **settings),
    ]


_WIDE = LognormalPairs(std=2.0)
_LAGRANGIAN, _EULERIAN, _MEANFLOW, _SEMIGROUP = "2406.07507", "2506.14603", "2505.13447", "2410.12557"

WAYS: dict[str, Way] = {
    "soft": Way(_matching(), "2310.02279"),
    "soft-multistep": Way(_matching(solver=MultistepWalk()), "2310.02279, 2211.01095"),
    "local": Way(_local, "2310.02279"),
    "global": Way(_global, "2310.02279"),
    "consistency-distillation": Way(_distillation, "2303.01469", gamma=1.0),
    "lagrangian": Way(lambda place: [Lagrangian()], _LAGRANGIAN),
    "lagrangian-student": Way(lambda place: [Lagrangian(velocity="student")], "2505.18825"),
    "eulerian": Way(_eulerian(0.2, pairs=_WIDE), _EULERIAN, rate=0.1, by_steps=True),
    "eulerian-data": Way(_eulerian(0.2, velocity="data", normalise=0.1, pairs=_WIDE), _MEANFLOW, by_steps=True),
    "semigroup": Way(lambda place: [Semigroup(pairs=_WIDE)], _SEMIGROUP),
    "consistency-tuning": Way(_tuning(s="end"), "2406.14548", gamma=1.0, by_steps=True),
    "trajectory-tuning": Way(_tuning(), "2406.14548", by_steps=True),
    "distribution-matching": Way(_with_distribution(0.5), "2405.14867", by_steps=True, on_mixture=False),
    # What was tried beside the defaults.
    "lagrangian/wide": Way(lambda place: [Lagrangian(pairs=_WIDE)], _LAGRANGIAN, tried=True),
    "lagrangian/faster": Way(lambda place: [Lagrangian()], _LAGRANGIAN, rate=2.0, tried=True),
    "lagrangian/slower": Way(lambda place: [Lagrangian()], _LAGRANGIAN, rate=0.5, tried=True),
    "eulerian/faster": Way(_eulerian(0.2, pairs=_WIDE), _EULERIAN, by_steps=True, tried=True),
    "eulerian/normalised": Way(_eulerian(0.2, normalise=0.1, pairs=_WIDE), _EULERIAN, by_steps=True, tried=True),
    "eulerian/normalised-slower": Way(
        _eulerian(0.2, normalise=0.1, pairs=_WIDE), _EULERIAN, rate=0.3, by_steps=True, tried=True
    ),
    "eulerian/karras": Way(_eulerian(0.2), _EULERIAN, by_steps=True, tried=True),
    "eulerian/karras-normalised": Way(_eulerian(0.2, normalise=0.1), _EULERIAN, by_steps=True, tried=True),
    "eulerian/karras-normalised-slower": Way(
        _eulerian(0.2, normalise=0.1), _EULERIAN, rate=0.3, by_steps=True, tried=True
    ),
    "eulerian/karras-normalised-late": Way(_eulerian(0.8, normalise=0.1), _EULERIAN, by_steps=True, tried=True),
    "eulerian-data/slower": Way(
        _eulerian(0.2, velocity="data", normalise=0.1, pairs=_WIDE), _MEANFLOW, rate=0.3, by_steps=True, tried=True
    ),
    "eulerian-data/karras": Way(_eulerian(0.2, velocity="data", normalise=0.1), _MEANFLOW, by_steps=True, tried=True),
    "semigroup/karras": Way(lambda place: [Semigroup()], _SEMIGROUP, tried=True),
    "semigroup/karras-drawn": Way(lambda place: [Semigroup(middle="drawn")], _SEMIGROUP, tried=True),
}


def in_words(objectives: Sequence[Objective]) -> str:
    """The objectives with all their settings, the same words in every process."""
    return re.sub(r"<function (\S+) at 0x[0-9a-f]+>", r"\1", repr(list(objectives)))


def chosen(names: str, *, reference: bool = False) -> list[str]:
    """The ways of a list with commas; "all" is every default. reference: whether the plain reference may be named too. Raises
    ValueError for an unknown name."""
    known = [*([REFERENCE] if reference else []), *WAYS]
    if names == "all":
        return [name for name in known if name == REFERENCE or not WAYS[name].tried]
    found = [name.strip() for name in names.split(",") if name.strip()]
    unknown = [name for name in found if name not in known]
    if unknown or not found:
        raise ValueError(f"--ways knows {', '.join(known)}, and all; not {', '.join(unknown) or 'an empty list'}")
    return found
