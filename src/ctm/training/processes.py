"""What several processes decide together, so that none waits for one that has left."""

from __future__ import annotations

from collections.abc import Callable

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast

__all__ = ["largest", "on_main"]


def on_main(accelerator: Accelerator, work: Callable[[], int | None]) -> int:
    """What `work` returns in the main process (None as 0), known to all. Where it raises, so does the main process, and the
    others leave with SystemExit(2) instead of waiting for it forever."""
    if accelerator.num_processes == 1:
        return work() or 0
    result, error = 0, None
    if accelerator.is_main_process:
        try:
            result = work() or 0
        except Exception as raised:
            result, error = -1, raised
    result = int(broadcast(torch.tensor([result], device=accelerator.device)))
    if error is not None:
        raise error
    if result < 0:
        raise SystemExit(2)
    return result


def largest(accelerator: Accelerator, number: int) -> int:
    """The largest over all processes."""
    if accelerator.num_processes == 1:
        return number
    return int(accelerator.gather(torch.tensor([number], device=accelerator.device)).max())
