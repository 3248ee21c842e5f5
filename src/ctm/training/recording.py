"""What a run writes and when, and how it takes up what it wrote."""

from __future__ import annotations

from typing import Any

from ctm.training.evaluation import SelfEvaluation
from ctm.training.guard import check_weights
from ctm.training.log import peak_memory
from ctm.training.pictures import save_sample_grid
from ctm.training.processes import on_main
from ctm.training.progress import TrainingBar
from ctm.training.run_directory import RunDirectory

__all__ = ["record", "take_up"]


def take_up(run: Any, directory: RunDirectory, settings: str) -> tuple[int, float]:
    """Claim the directory and go on from its newest whole checkpoint. Returns (step, seconds trained so far), 0 and 0 at the
    start. All processes call this together."""

    def opened() -> int:
        directory.claim(settings)
        return directory.latest() or 0

    reached, elapsed = on_main(run.accelerator, opened), 0.0
    if reached > 0:
        checkpoint = directory.load(reached, *run.parts(gather=False))
        elapsed = checkpoint.elapsed
        for name, guard in run.guards.items():
            guard.load_state_dict(checkpoint.extra["guards"][name])
    averages = run.whole_averages() if reached > 0 else {}

    def brought_to_step() -> None:
        directory.forget_after(reached)
        for name, average in averages.items():
            directory.publish(average, name)

    on_main(run.accelerator, brought_to_step)
    return reached, elapsed


def record(
    run: Any,
    directory: RunDirectory,
    log: Any,
    bar: TrainingBar,
    step: int,
    seconds: float,
    judge: SelfEvaluation | None = None,
    *,
    stop: bool,
) -> None:
    """Write what is due after a step: numbers, pictures, an evaluation by judge, a checkpoint. Right after a skipped step no
    checkpoint is written, unless it is the last chance: the weights may be what makes steps fail. All processes call this
    together; log and judge are the main one's. Raises TrainingDiverged and CannotWrite in the main process, SystemExit in the
    others."""
    recipe, last = run.recipe, step == run.recipe.steps
    sampled = step % recipe.sample_every == 0 or last
    kept = last or stop or (step % recipe.checkpoint_every == 0 and not run.skipping)
    judged = recipe.evaluation is not None and (step % recipe.evaluation.every == 0 or last)
    averages = run.whole_averages() if sampled or kept or judged else {}
    modules, optimizers = run.parts(gather=True) if kept else ({}, {})

    def write() -> None:
        for guard in run.guards.values():
            guard.check(step, directory.steps)
        with directory.writing():
            if step % recipe.log_every == 0 or last:
                bar.note(log.write(step, seconds, _state(run)))
            if sampled:
                save_sample_grid(averages["model"], directory.samples / f"{step:06d}.png")
            if judge is not None and judged:
                judge(averages["model"], step)
        if kept:
            check_weights(step, modules, directory.steps)
            extra = {"guards": {name: guard.state_dict() for name, guard in run.guards.items()}}
            directory.save(step, modules, optimizers, extra, seconds)
            for name, average in averages.items():
                directory.publish(average, name)

    on_main(run.accelerator, write)


def _state(run: Any) -> dict[str, float]:
    """Numbers that are logged as they stand, not as means over steps."""
    rate = run.optimizer.param_groups[0]["lr"]
    skipped = sum(guard.skipped for guard in run.guards.values())
    return {"skipped": skipped, "learning_rate": rate, "peak_memory_mib": peak_memory(run.accelerator.device)}
