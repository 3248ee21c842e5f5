"""The scheduler in process, against `ctm.generate` on the same images: as a batch, and one image at a time."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

from ctm.models import AnyModel
from ctm.sampling import generate
from ctm.sampling.common import device_of
from ctm.sampling.generation import class_labels
from ctm.serve.plans import Part, choose, joinable
from ctm.serve.scheduler import Scheduler
from ctm.serve.tickets import Joinable

__all__ = ["measure_scheduler"]


def measure_scheduler(model: AnyModel, *, steps: int, batch_size: int, rounds: int) -> dict[str, object]:
    """Images a second, medians over `rounds` rounds, and the medians of the ratios in each round. On a CPU the seconds are the
    processor's, of all threads together, which other processes disturb less.

    batch: `ctm.generate` of batch_size images in one batch; single: the same one image at a time; scheduler_N: the scheduler with
    requests of N images each, as many at once as fill four calls."""
    scheduler = Scheduler(model, batch_size=batch_size, queue_limit=4 * batch_size)
    method = choose(model, steps=steps)

    def plan(num: int, seed: int) -> Joinable:
        part = Part(num, seed, class_labels(model, num, None, seed))
        return joinable(model, method, part, scheduler.device)

    def scheduled(num: int) -> None:
        tickets = [scheduler.submit(plan(num, seed), num) for seed in range(4 * batch_size // num)]
        for ticket in tickets:
            ticket.result()

    def one_by_one() -> None:
        for seed in range(batch_size):
            generate(model, 1, steps=steps, seed=seed)

    sizes = sorted({1, 8, batch_size})
    works: dict[str, tuple[Callable[[], object], int]] = {
        "batch": (lambda: generate(model, 4 * batch_size, steps=steps, batch_size=batch_size), 4 * batch_size),
        "single": (one_by_one, batch_size),
        **{f"scheduler_{num}": ((lambda num=num: scheduled(num)), 4 * batch_size // num * num) for num in sizes},  # type: ignore[misc]
    }
    for work, _ in works.values():
        work()
    clock = time.process_time if device_of(model).type == "cpu" else time.perf_counter
    rates = [{name: images / _seconds(work, clock) for name, (work, images) in works.items()} for _ in range(rounds)]
    scheduler.stop()
    found: dict[str, Any] = {name: statistics.median(each[name] for each in rates) for name in works}
    for num in sizes:
        mine = f"scheduler_{num}"
        found[f"{mine}_to_batch"] = statistics.median(each[mine] / each["batch"] for each in rates)
        found[f"{mine}_to_single"] = statistics.median(each[mine] / each["single"] for each in rates)
    return found | {"steps": steps, "batch_size": batch_size, "rounds": rounds}


def _seconds(work: Callable[[], object], clock: Callable[[], float]) -> float:
    started = clock()
    work()
    return clock() - started
