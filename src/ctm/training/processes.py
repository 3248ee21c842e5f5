"""What several processes decide together, so that none waits for one that has left."""

from __future__ import annotations

import os
from collections.abc import Callable

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast

__all__ = ["all_reduce_max", "check_launch", "on_main"]


def check_launch(processes: int, command: str) -> None:
    """Raises ValueError where `accelerate launch` was asked for several processes and has started this one alone, as it does on
    a machine without GPUs: there it starts several through MPI only. It tells where they meet, but not how many there are.

    processes: how many have found each other. command: what runs, such as "train", for the sentence."""
    launched = "ACCELERATE_DYNAMO_BACKEND" in os.environ and "MASTER_ADDR" in os.environ
    if launched and "WORLD_SIZE" not in os.environ and processes == 1:
        raise ValueError(
            "accelerate launch was asked for several processes and started one: on CPUs it starts several through MPI only "
            f"(--mpirun_hostfile). Use torchrun --nproc_per_node 2 -m -- ctm {command} …, or accelerate launch --num_processes 1"
        )


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


def all_reduce_max(accelerator: Accelerator, number: int) -> int:
    """The largest over all processes."""
    if accelerator.num_processes == 1:
        return number
    return int(accelerator.gather(torch.tensor([number], device=accelerator.device)).max())
