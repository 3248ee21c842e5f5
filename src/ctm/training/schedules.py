"""How the target's decay and the number of grid points change in a run of consistency training."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

__all__ = ["Doubling", "Progressive", "Schedule"]


class Schedule(ABC):
    """(step from 0, steps of the run) -> (decay of the target, levels of the objectives' grid)."""

    @abstractmethod
    def __call__(self, step: int, steps: int) -> tuple[float, int]: ...


@dataclass(frozen=True)
class Progressive(Schedule):
    """Consistency training's (arXiv 2303.01469, appendix C): from `start` intervals to `end`, their square growing evenly,
    max(1, ⌈√(k/K·((end + 1)² − start²) + start²) − 1⌉) in step k of K; the decay exp(start·ln(start_decay)/intervals), nearer
    1 on finer grids."""

    start: int = 2
    end: int = 150
    start_decay: float = 0.9

    def __post_init__(self) -> None:
        _check(self.start, self.end)
        if not 0 < self.start_decay < 1:
            raise ValueError(f"start_decay must be between 0 and 1, got {self.start_decay}")

    def __call__(self, step: int, steps: int) -> tuple[float, int]:
        grown = step / steps * ((self.end + 1) ** 2 - self.start**2) + self.start**2
        intervals = max(1, math.ceil(math.sqrt(grown) - 1))
        return math.exp(self.start * math.log(self.start_decay) / intervals), intervals + 1


@dataclass(frozen=True)
class Doubling(Schedule):
    """Improved consistency training's (arXiv 2310.14189, section 3.4): `start` intervals, doubled up to `end` in stages of
    equal length, K' = ⌊K/(log₂⌊end/start⌋ + 1)⌋; the target is the student itself, decay 0 (section 3.2)."""

    start: int = 10
    end: int = 1280

    def __post_init__(self) -> None:
        _check(self.start, self.end)

    def __call__(self, step: int, steps: int) -> tuple[float, int]:
        stage = max(1, math.floor(steps / (math.log2(self.end // self.start) + 1)))
        return 0.0, min(self.start * 2 ** (step // stage), self.end) + 1


def _check(start: int, end: int) -> None:
    if not 1 <= start <= end:
        raise ValueError(f"a schedule of grids needs 1 ≤ start ≤ end, got {start} and {end}")
