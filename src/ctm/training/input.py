"""The items of a step's batch on the host, and their preparation ahead of the step by worker threads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import Tensor

from ctm.conditions import AUGMENT, Condition, to, with_field
from ctm.data import Dataset, epoch_order, random_flips
from ctm.data.geometry import draw_geometry
from ctm.training.recipe import DataSettings

__all__ = ["Ahead", "host_rows"]

_WORKERS = 2  # one reads from the disk while the other converts
_STEPS = 2  # that are prepared ahead

Rows: TypeAlias = tuple[Tensor, Condition]


def host_rows(data: Dataset, settings: DataSettings, seed: int, step: int, part: slice) -> Rows:
    """Rows `part` of the common batch of a step, as a model learns them, float32 (B, *shape), and their condition, on the CPU.

    They depend on the data, (seed, step) and the settings alone, in whatever process or thread they are made."""
    total = settings.batch_size
    x0, condition = data.rows(epoch_order(len(data), step * total, total, seed)[part])
    if settings.flip:
        x0 = torch.where(random_flips(total, seed, step)[part].view(-1, 1, 1, 1), x0.flip(-1), x0)
    if settings.augment:
        geometry = draw_geometry(total, settings.augment, seed, step).rows(part)
        x0, condition = geometry.apply(x0), with_field(condition, AUGMENT, geometry.labels())
    return x0, condition


@dataclass
class Ahead:
    """`host_rows` of a run, prepared by threads while the device computes, in pinned memory where the device is a GPU of CUDA.

    On a CPU nothing is prepared ahead: the cores that would prepare are those that compute. What is taken is the same either
    way. threads: None: by the device."""

    data: Dataset
    device: torch.device
    steps: int
    threads: bool | None = None
    _pool: ThreadPoolExecutor | None = field(init=False, default=None)
    _pending: dict[tuple[int, int, int, int, int], Future[Rows]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        if self.device.type != "cpu" if self.threads is None else self.threads:
            self._pool = ThreadPoolExecutor(_WORKERS, thread_name_prefix="ctm-input")

    def take(self, settings: DataSettings, seed: int, step: int, part: slice) -> Rows:
        """Rows `part` of a step's batch on the device, sent without waiting for the device. The same rows of the next steps are
        begun. Raises what reading the data raises."""
        if self._pool is None:
            x0, condition = host_rows(self.data, settings, seed, step, part)
        else:
            key = (settings.batch_size, seed, step, part.start, part.stop)
            future = self._pending.pop(key, None)
            for old in [known for known in self._pending if known[2] <= step - _STEPS]:
                self._pending.pop(old).cancel()
            for later in range(step + 1, min(step + 1 + _STEPS, self.steps)):
                following = (*key[:2], later, *key[3:])
                if following not in self._pending:
                    self._pending[following] = self._pool.submit(self._made, settings, seed, later, part)
            x0, condition = self._made(settings, seed, step, part) if future is None else future.result()
        if self.device.type == "cuda":
            return x0.to(self.device, non_blocking=True), _sent(condition, self.device)
        return x0.to(self.device), to(condition, self.device)

    def _made(self, settings: DataSettings, seed: int, step: int, part: slice) -> Rows:
        x0, condition = host_rows(self.data, settings, seed, step, part)
        if self.device.type != "cuda":
            return x0, condition
        return x0.pin_memory(), _each(condition, lambda tensor: tensor.pin_memory())


def _sent(condition: Condition, device: torch.device) -> Condition:
    return _each(condition, lambda tensor: tensor.to(device, non_blocking=True))


def _each(condition: Condition, change: Callable[[Tensor], Tensor]) -> Condition:
    """The condition with each of its tensors changed."""
    if condition is None:
        return None
    if isinstance(condition, Mapping):
        return {name: change(value) for name, value in condition.items()}
    return change(condition)
