"""What a run writes and when, and how it takes up what it wrote."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from ctm.files import write_whole
from ctm.foreign.text import JSONObject
from ctm.models import AnyModel
from ctm.training.adapter_files import AdapterFiles
from ctm.training.assembly import Run
from ctm.training.card import run_card
from ctm.training.forms import is_number
from ctm.training.guard import check_weights
from ctm.training.log import MetricsLog, peak_memory
from ctm.training.origin import MADE_OF, compare_origins, origin_of, read_origin
from ctm.training.processes import on_main
from ctm.training.progress import TrainingBar
from ctm.training.run_directory import RunDirectory
from ctm.training.sample_grids import GridClock, column_condition, save_sample_grid
from ctm.training.self_evaluation import SelfEvaluation
from ctm.training.settings import check_settings, source_differences

__all__ = ["Recorder", "TakenUp", "take_up"]


@dataclass
class TakenUp:
    """Where a run goes on: steps and seconds so far, 0 at the start. sums: of the log since its last line. lines: what a person
    is told. data: what made_of.json says of the data."""

    step: int = 0
    elapsed: float = 0.0
    sums: JSONObject = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    data: JSONObject = field(default_factory=dict)


def take_up(run: Run, directory: RunDirectory, settings: str) -> TakenUp:
    """Claim the directory and go on from its newest whole checkpoint. All processes call this together."""
    taken, recipe, place = TakenUp(), run.recipe, str(directory.path)

    def opened() -> int:
        origin = origin_of(run.images, run.begun.sources)

        def check(before: Mapping[str, object]) -> None:
            now = yaml.safe_load(settings)
            equal, lines = compare_origins(read_origin(directory.path), origin, place, source_differences(before, now))
            reached = max(directory.steps(), default=0)
            changed = check_settings(before, now, recipe, place=place, reached=reached, equal=equal)
            taken.lines += [*lines, *changed]

        directory.claim(settings, check)
        with directory.writing():
            write_whole(directory.path / MADE_OF, origin.text().encode())
        taken.data = origin.sources["data"]
        return directory.latest() or 0

    reached = taken.step = on_main(run.accelerator, opened)
    run.begun.sources.clear()
    closed = False
    if reached > 0:
        taken.lines.append(
            f"goes on from step {reached:,} of {recipe.steps:,}"
            if reached < recipe.steps
            else f"all {reached:,} steps were taken before: there is nothing left to train"
        )
        checkpoint = directory.load(reached, *run.parts(gather=False))
        taken.elapsed = checkpoint.elapsed
        with directory.fitting(reached):
            taken.sums, closed = _sums(checkpoint.extra.get("log", {})), checkpoint.extra.get("closed", False)
            for name, guard in run.guards.items():
                guard.load_state_dict(checkpoint.extra["guards"][name])
            if not all(is_number(group["initial_lr"]) for group in run.optimizer.param_groups):
                raise ValueError("the first learning rate of the optimizer is no number")
    else:
        taken.lines += run.begun.lines
    averages = run.whole_averages() if reached > 0 else {}

    def brought_to_step() -> None:
        directory.forget_after(reached, closed=closed and reached < recipe.steps)
        for name, average in averages.items():
            average.grids = directory.tuned_grids(name, average)
            directory.publish(average, name, run_card(directory, run, taken.data, reached, taken.elapsed, average))
            if average.grids and reached < recipe.steps:
                taken.lines.append(
                    f"{name}/ has tuned grids of step {reached}, the next has none: ctm tune makes them again"
                )
            average.grids = {}  # of other weights than those to come

    on_main(run.accelerator, brought_to_step)
    return taken


def _sums(kept: Any) -> dict[str, list[float]]:
    """The sums of a checkpoint: by name of a number what it adds up to, which may be no finite one, and of how many steps."""
    return {str(name): [float(total), float(count)] for name, (total, count) in kept.items()}


@dataclass
class Recorder:
    """Writes what is due after each step. log and judge are the main process's, None in the others."""

    run: Run
    directory: RunDirectory
    log: MetricsLog | None
    bar: TrainingBar
    clock: GridClock
    judge: SelfEvaluation | None
    data: Mapping[str, Any]

    def record(self, step: int, seconds: float, *, stop: bool, grid: bool = False) -> None:
        """Write what is due: numbers, pictures, an evaluation by judge, a checkpoint. Right after a skipped step no
        checkpoint is written, unless it is the last chance: the weights may be what makes steps fail. All processes call this
        together. grid: draw a sample grid whatever the step. Raises TrainingDiverged and CannotWrite in the main process,
        SystemExit in the others."""
        run, directory = self.run, self.directory
        recipe, last = run.recipe, step == run.recipe.steps
        sampled = grid or step % recipe.sample_every == 0 or last
        kept = last or stop or (step % recipe.checkpoint_every == 0 and not run.skipping)
        judged = recipe.evaluation is not None and (step % recipe.evaluation.every == 0 or last)
        averages = run.whole_averages() if sampled or kept or judged else {}
        modules, optimizers = run.parts(gather=True) if kept else ({}, {})

        def write() -> None:
            assert self.log is not None  # in the main process
            for guard in run.guards.values():
                guard.check(step, directory.steps)
            closed = last and step % recipe.log_every != 0
            with directory.writing():
                if last or step % recipe.log_every == 0:
                    self.bar.note(self.log.write(step, seconds, _state(run), between=closed))
                if sampled:
                    self._draw(averages["model"], step)
                if self.judge is not None and judged:
                    average = averages["model"]
                    self.judge(average, step, lambda: run_card(directory, run, self.data, step, seconds, average))
            if kept:
                check_weights(step, modules, directory.steps)
                guards = {name: guard.state_dict() for name, guard in run.guards.items()}
                extra = {"guards": guards, "log": self.log.state_dict(), "closed": closed}
                directory.save(step, modules, optimizers, extra, seconds)
                for name, average in averages.items():
                    directory.publish(average, name, run_card(directory, run, self.data, step, seconds, average))
                if recipe.lora is not None:
                    directory.publish(AdapterFiles(run.published, recipe.lora, _teacher_of(directory)), "adapter")

        on_main(run.accelerator, write)

    def _draw(self, model: AnyModel, step: int) -> None:
        started = time.monotonic()
        save_sample_grid(model, self.directory.samples / f"{step:06d}.png", column_condition(self.run.images))
        self.clock.drawn(time.monotonic() - started)


def _teacher_of(directory: RunDirectory) -> dict[str, str]:
    """Name and digest of the run's teacher, as made_of.json has them."""
    origin = read_origin(directory.path)
    about = {} if origin is None else origin.sources.get("teacher", {})
    return {name: str(about.get(name, "")) for name in ("name", "digest")}


def _state(run: Run) -> dict[str, float]:
    """Numbers that are logged as they stand, not as means over steps."""
    rate = run.optimizer.param_groups[0]["lr"]
    skipped = sum(guard.skipped for guard in run.guards.values())
    return {"skipped": skipped, "learning_rate": rate, "peak_memory_mib": peak_memory(run.accelerator.device)}
