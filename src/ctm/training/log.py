"""Numbers of a run: means between two lines of metrics.jsonl, which TensorBoard and trackers get too; memory taken."""

from __future__ import annotations

import sys
import threading
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
    """Collects the numbers of each step and writes their means.

    The sums since the last line are part of a checkpoint, so that a continued run writes the lines of an unbroken one."""

    def __init__(
        self,
        directory: RunDirectory,
        names: Sequence[str],
        batch_size: int,
        step: int,
        trackers: Sequence[Any] = (),
        *,
        begun: Mapping[str, Any] | None = None,
    ) -> None:
        """names: of the losses, for the line a person reads. batch_size: images in a step. step: steps done already.
        trackers: others that get each row, by log(row, step=…). begun: `state_dict` of the run that goes on."""
        from torch.utils.tensorboard import SummaryWriter  # here, because its import takes seconds

        self._directory, self._names, self._batch_size = directory, list(names), batch_size
        _leave_full_disks_to_the_main_thread()
        self._writer = SummaryWriter(str(directory.path), purge_step=step + 1)
        self._trackers = trackers
        self._steps: list[Mapping[str, float | Tensor]] = []
        self._sums: dict[str, list[float]] = {name: list(sums) for name, sums in (begun or {}).items()}
        self._last, self._taken = time.monotonic(), 0

    def add(self, numbers: Mapping[str, float | Tensor]) -> None:
        """The numbers of one step: floats or scalar tensors. A number need not be there in every step."""
        self._steps.append(numbers)
        self._taken += 1

    def state_dict(self) -> dict[str, list[float]]:
        """By name the sum of the numbers since the last line, and of how many steps, as JSON."""
        for numbers in self._steps:
            for name, value in numbers.items():
                total, count = self._sums.get(name, [0.0, 0])
                self._sums[name] = [total + float(value), count + 1]
        self._steps = []
        return {name: list(sums) for name, sums in self._sums.items()}

    def write(self, step: int, elapsed: float, more: Mapping[str, float], *, between: bool = False) -> str:
        """Write one line: means over the steps that have the number, images per second, and `more` as it stands. between: this
        is the run's end between two lines, which a longer run will not have, so the sums stay.
        Returns the losses in words."""
        now = time.monotonic()
        means = {name: total / count for name, (total, count) in self.state_dict().items()}
        row: dict[str, float] = {"step": step, "seconds": round(elapsed, 3), **means}
        row["images_per_second"] = self._taken * self._batch_size / max(now - self._last, 1e-9)
        row |= more
        self._sums = self._sums if between else {}
        self._last, self._taken = now, 0
        self._directory.log(row)
        for name, value in row.items():
            if name != "step":
                self._writer.add_scalar(name, value, step)
        self._writer.flush()
        for tracker in self._trackers:
            tracker.log({name: value for name, value in row.items() if name != "step"}, step=step)
        return ", ".join(f"{name} {row[f'loss/{name}']:.4g}" for name in self._names if f"loss/{name}" in row)


def _leave_full_disks_to_the_main_thread() -> None:
    """TensorBoard writes in a thread, and raises what fails there again where the numbers come from. The thread's own
    traceback would stand before our sentence."""
    before = threading.excepthook
    if getattr(before, "of_ctm", False):
        return

    def hook(failure: threading.ExceptHookArgs) -> None:
        written = type(failure.thread).__name__ == "_AsyncWriterThread"
        if not (written and issubclass(failure.exc_type, OSError)):
            before(failure)

    hook.of_ctm = True  # type: ignore[attr-defined]
    threading.excepthook = hook
