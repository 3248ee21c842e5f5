"""Success of each policy over the same episodes, the ways it took, and the time of a decision."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from examples.robotics.maze import Episodes, Expert, Policy, observe, run_episodes
from examples.robotics.policies import Generated, Regression

import ctm


@dataclass(frozen=True)
class Row:
    """A policy's episodes, and the median milliseconds of one decision for one robot: of the clock, and of the processor."""

    name: str
    episodes: Episodes
    clock: float
    processor: float

    @property
    def above(self) -> float:
        """Of the balls that came past the middle, the share that went above the block."""
        came = self.episodes.way[self.episodes.way != 0]
        return float((came > 0).mean()) if len(came) else float("nan")


def standard_error(values: np.ndarray) -> float:
    """Of the mean of values (N,)."""
    return float(values.std(ddof=1) / np.sqrt(len(values)))


def tuned(model: ctm.TrajectoryModel, teacher: ctm.DiffusionModel, steps: int, data: Path, num: int) -> torch.Tensor:
    """The levels of `steps` jumps that `ctm.tune_grid` chooses by the teacher's flow, on observations of the demonstrations."""
    with np.load(data) as held:
        rows = np.random.default_rng(0).permutation(len(held["observation"]))[: 4 * num]
        fields = {"observation": torch.from_numpy(held["observation"][rows])}
    measure = ctm.sampling.FlowDistance(model, teacher, num=num, held_out=3 * num, fields=fields, levels=18)
    return torch.tensor(ctm.tune_grid(model, steps, measure=measure).levels)


def policies(
    teacher: ctm.DiffusionModel, student: ctm.TrajectoryModel, data: Path, tuning: int = 128
) -> dict[str, Policy]:
    """The policies of the table by name. tuning: sequences on which a grid of levels is tuned."""
    found: dict[str, Policy] = {"expert": Expert(seed=3), "regression": Regression().fit(data)}
    found["teacher, 35 evaluations"] = Generated(teacher)
    found["teacher, 35 evaluations, no warm start"] = Generated(teacher, warm=None)
    found["CTM, 1 jump"] = Generated(student, jumps=1)
    for jumps in (2, 3, 8):
        for gamma in (0.0, 1.0):
            found[f"CTM, {jumps} jumps, γ = {gamma:g}"] = Generated(student, jumps=jumps, gamma=gamma)
    for jumps in (1, 3, 8):
        words = "1 jump" if jumps == 1 else f"{jumps} jumps, γ = 0"
        found[f"CTM, {words}, no warm start"] = Generated(student, jumps=jumps, warm=None)
    grid = tuned(student, teacher, 3, data, tuning)
    found["CTM, 3 jumps, γ = 0, no warm start, tuned grid"] = Generated(student, jumps=3, warm=None, grid=grid)
    return found


def decision_times(policies: dict[str, Policy], repeats: int = 20) -> dict[str, tuple[float, float]]:
    """Median milliseconds of a decision at batch 1, clock and processor, of policies taken in turn, so that what else the machine
    does meets all of them."""
    state = np.array([[-2.0, 0.0, 0.0, 0.0]])
    seen, one = observe(state, state, np.array([[2.0, 0.0]])), np.arange(1)
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in policies}
    for _ in range(repeats + 1):
        for name, policy in policies.items():
            policy.start(one)
            before = time.perf_counter(), time.process_time()
            policy.act(one, seen)
            spent[name].append((time.perf_counter() - before[0], time.process_time() - before[1]))
    return {name: tuple(1e3 * np.median(times[1:], axis=0)) for name, times in spent.items()}


def measured(policies: dict[str, Policy], count: int) -> list[Row]:
    """The rows of the table, each over the same `count` episodes."""
    times = decision_times(policies)
    rows = []
    for name, policy in policies.items():
        rows.append(Row(name, run_episodes(policy, np.arange(count)), *times[name]))
        print(row_words(rows[-1]), flush=True)
    return rows


def row_words(row: Row) -> str:
    success = row.episodes.success.astype(float)
    return (
        f"{row.name}: success {100 * success.mean():.1f} ± {100 * standard_error(success):.1f} %, above {100 * row.above:.0f} %, "
        f"{row.processor:.1f} ms"
    )


def table(rows: list[Row], reference: str = "teacher, 35 evaluations") -> str:
    """The rows in Markdown. ± is one standard error; the differences are over pairs of the same episode."""
    base = next((row for row in rows if row.name == reference), None)
    lines = [
        "| policy | success, % | less than the teacher, points | above, % | actions | ms a decision: processor | clock |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        success, won = 100.0 * row.episodes.success, row.episodes.success
        less = "" if base is None or row is base else _difference(100.0 * base.episodes.success - success)
        length = f"{row.episodes.length[won].mean():.1f}" if won.any() else ""
        lines.append(
            f"| {row.name} | {success.mean():.1f} ± {standard_error(success):.1f} | {less} | {100 * row.above:.0f} | {length} | "
            f"{row.processor:.2f} | {row.clock:.2f} |"
        )
    return "\n".join(lines)


def _difference(pairs: np.ndarray) -> str:
    return f"{pairs.mean():.1f} ± {standard_error(pairs):.1f}"
