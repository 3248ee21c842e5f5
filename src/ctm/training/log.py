"""Numbers of a run: means between two lines of metrics.jsonl, which TensorBoard and trackers get too; memory taken."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ctm.training.run_directory import RunDirectory

__all__ = ["MetricsLog", "loss_names", "peak_memory"]

_MEBIBYTE = 2**20


def loss_names(objectives: Sequence[object]) -> list[str]:
    """The class of each objective; the second of a class is called Name-2, and so on."""
    kinds = [type(objective).__name__ for objective in objectives]
    counts = [kinds[: index + 1].count(kind) for index, kind in enumerate(kinds)]
    return [kind if count == 1 else f"{kind}-{count}" for kind, count in zip(kinds, counts, strict=True)]


def peak_memory(device: torch.device) -> float:
    """The most memory this process held so far, in MiB: of the GPU where it works on one, else resident in RAM."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / _MEBIBYTE
    try:
        import resource
    except ImportError:  # Windows, where psutil's own field has the peak
        import psutil

        return float(psutil.Process().memory_info().peak_wset) / _MEBIBYTE
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / _MEBIBYTE if sys.platform == "darwin" else peak / 1024  # bytes there, KiB elsewhere


class MetricsLog:
    """Collects the numbers of each step and writes their means."""

    def __init__(
        self, directory: RunDirectory, names: Sequence[str], batch_size: int, step: int, trackers: Sequence[Any] = ()
    ) -> None:
        """names: of the losses, for the line a person reads. batch_size: images in a step. step: steps done already.
        trackers: others that get each row, by log(row, step=…)."""
        from torch.utils.tensorboard import SummaryWriter  # here, because its import takes seconds

        self._directory, self._names, self._batch_size = directory, list(names), batch_size
        self._writer = SummaryWriter(str(directory.path), purge_step=step + 1)
        self._trackers = trackers
        self._steps: list[Mapping[str, float | Tensor]] = []
        self._last = time.monotonic()

    def add(self, numbers: Mapping[str, float | Tensor]) -> None:
        """The numbers of one step: floats or scalar tensors. A number need not be there in every step."""
        self._steps.append(numbers)

    def write(self, step: int, elapsed: float, more: Mapping[str, float]) -> str:
        """Write one line: means over the steps that have the number, images per second, and `more` as it stands.
        Returns the losses in words."""
        now = time.monotonic()
        row: dict[str, float] = {"step": step, "seconds": round(elapsed, 3), **self._means()}
        row["images_per_second"] = len(self._steps) * self._batch_size / max(now - self._last, 1e-9)
        row |= more
        self._steps, self._last = [], now
        self._directory.log(row)
        for name, value in row.items():
            if name != "step":
                self._writer.add_scalar(name, value, step)
        self._writer.flush()
        for tracker in self._trackers:
            tracker.log({name: value for name, value in row.items() if name != "step"}, step=step)
        return ", ".join(f"{name} {row[f'loss/{name}']:.4g}" for name in self._names if f"loss/{name}" in row)

    def _means(self) -> dict[str, float]:
        names = list(dict.fromkeys(name for numbers in self._steps for name in numbers))
        values: dict[str, list[Any]] = {name: [float(n[name]) for n in self._steps if name in n] for name in names}
        return {name: sum(column) / len(column) for name, column in values.items()}
