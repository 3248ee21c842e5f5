"""The training loop: one function from a recipe to a run directory."""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor

from ctm.data import Images, epoch_order, load_images
from ctm.teachers import load_teacher
from ctm.training.diagnosis import first_bad_value
from ctm.training.ema import frozen_copy, move_average, warmed_decay
from ctm.training.guard import StepGuard, check_weights, gradient_norm
from ctm.training.interrupt import InterruptLater, Terminated
from ctm.training.pictures import save_sample_grid
from ctm.training.progress import TrainingBar
from ctm.training.recipe import Recipe
from ctm.training.run_directory import RunDirectory
from ctm.training.step import Batch, LossModule, backward, draw_batch, step_generator
from ctm.training.student import check_teacher, start_from_teacher

__all__ = ["train"]

_LOG = logging.getLogger(__name__)


@dataclass
class _Run:
    """What the loop works on."""

    recipe: Recipe
    accelerator: Accelerator
    images: Images
    module: LossModule
    wrapped: Any
    optimizer: Any
    published: Any
    target: Any
    teacher: Any
    guard: StepGuard

    @property
    def student(self) -> Any:
        return self.module.student

    @property
    def optimizers(self) -> dict[str, Any]:
        """What a checkpoint holds of optimisers."""
        return {"student": self.optimizer}

    def modules(self) -> dict[str, torch.nn.Module]:
        """What a checkpoint holds."""
        kept = {"student": self.student, "ema": self.published, "target": self.target}
        return {name: module for name, module in kept.items() if module is not None}


def train(
    recipe: Recipe, out: Path, settings: str, *, images: Images | None = None, title: str = "train"
) -> RunDirectory:
    """Train by `recipe` in the run directory `out`, going on from its newest checkpoint where there is one.

    settings: the recipe as YAML; it is kept as config.yaml and tells whether a used directory holds the same run.
    images: the data where the caller has it already. Works under accelerate's launcher in any number of processes; the
    batch of the recipe is divided among them. Returns the run directory, whose model/ holds the EMA weights.
    Raises ValueError for settings that do not fit each other or the directory, TrainingDiverged where too many steps in a
    row were skipped, CannotWrite where the disk is full or permission lacks; after a checkpoint,
    KeyboardInterrupt for Ctrl-C and Terminated for SIGTERM. In processes other than the main one, SystemExit for all these.
    """
    accelerator = Accelerator(cpu=not torch.accelerator.is_available())  # so that processes on CPUs find each other
    run = _prepare(recipe, accelerator, images or _load(recipe))
    directory = RunDirectory(out, recipe.keep_checkpoints)
    reached = _on_main(accelerator, lambda: _open(directory, settings))
    step, elapsed = 0, 0.0
    if reached > 0:
        checkpoint = directory.load(reached, run.modules(), run.optimizers)
        step, elapsed = checkpoint.step, checkpoint.elapsed
        run.guard.load_state_dict(checkpoint.extra["guard"])
    _on_main(accelerator, lambda: _go_on(directory, step, run.published))
    _loop(run, directory, step, elapsed, title)
    return directory


def _open(directory: RunDirectory, settings: str) -> int:
    """Claim the directory; the step to go on from, 0 for the start."""
    directory.claim(settings)
    return directory.latest() or 0


def _go_on(directory: RunDirectory, step: int, published: Any) -> None:
    """Bring the files that are not in the checkpoint to its step."""
    directory.forget_after(step)
    if step > 0:
        directory.publish(published)


def _on_main(accelerator: Accelerator, work: Callable[[], int | None]) -> int:
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


def _load(recipe: Recipe) -> Images:
    data = recipe.data
    return load_images(data.name, data.size, data.channels, data.split)


def _prepare(recipe: Recipe, accelerator: Accelerator, images: Images, *, stand_in: bool = False) -> _Run:
    """Networks, optimiser and data, in place on the device. stand_in: a copy of the student is the teacher where a teacher
    is needed and none is named."""
    if recipe.data.batch_size % accelerator.num_processes:
        raise ValueError(
            f"data.batch_size {recipe.data.batch_size} does not divide among {accelerator.num_processes} processes"
        )
    needs_teacher = any(objective.needs_teacher for objective in recipe.objectives)
    if needs_teacher and recipe.teacher is None and not stand_in:
        raise ValueError("this recipe matches a teacher's trajectory but names none: give --teacher MODEL")
    torch.manual_seed(recipe.seed)
    student = recipe.model.build(recipe.network, images.shape, images.num_classes)
    teacher = None
    if recipe.teacher is not None:
        teacher = load_teacher(recipe.teacher)
        check_teacher(teacher, student)
        start_from_teacher(student, teacher)
    student = student.to(accelerator.device)
    needs_target = any(objective.needs_target for objective in recipe.objectives)
    module = LossModule(student, recipe.objectives)
    optimizer = recipe.optimizer(student.parameters())
    published, target = frozen_copy(student), frozen_copy(student) if needs_target else None
    if teacher is None and needs_teacher:
        teacher = frozen_copy(student)
    teacher = teacher.to(accelerator.device) if teacher is not None else None
    wrapped, optimizer = accelerator.prepare(module, optimizer)
    guard = StepGuard(recipe.skip_limit, recipe.spike_factor)
    return _Run(recipe, accelerator, images, module, wrapped, optimizer, published, target, teacher, guard)


def _loop(run: _Run, directory: RunDirectory, step: int, elapsed: float, title: str) -> None:
    recipe, main = run.recipe, run.accelerator.is_main_process
    base_rates = [group["lr"] for group in run.optimizer.param_groups] if step == 0 else None
    rates = base_rates or [group["initial_lr"] for group in run.optimizer.param_groups]
    for group, rate in zip(run.optimizer.param_groups, rates, strict=True):
        group["initial_lr"] = rate
    with directory.writing():
        log = _Log(run, directory, step) if main else None
    started = time.monotonic() - elapsed
    with InterruptLater() as interrupt, TrainingBar(title, recipe.steps, step, shown=main) as bar:
        while step < recipe.steps:
            numbers = _step(run, step)
            step += 1
            bar.advance()
            if log is not None and run.guard.in_a_row == 0:
                log.add(*numbers)
            stop = _largest(run.accelerator, interrupt.requested)
            seconds = time.monotonic() - started
            _on_main(run.accelerator, partial(_record, run, directory, log, bar, step, seconds, stop != 0))
            if stop == signal.SIGINT:
                raise KeyboardInterrupt
            if stop == signal.SIGTERM:
                bar.say(f"stopped by SIGTERM after the checkpoint of step {step}; the same command goes on from there")
                raise Terminated


def _record(
    run: _Run, directory: RunDirectory, log: Any, bar: TrainingBar, step: int, seconds: float, stop: bool
) -> None:
    """Write what is due after a step: numbers, pictures, a checkpoint. Right after a skipped step none is written, unless it
    is the last chance: the weights may be what makes steps fail."""
    recipe, last = run.recipe, step == run.recipe.steps
    run.guard.check(step, directory.steps)
    with directory.writing():
        if step % recipe.log_every == 0 or last:
            bar.note(log.write(step, seconds))
        if step % recipe.sample_every == 0 or last:
            save_sample_grid(run.published, directory.samples / f"{step:06d}.png")
    due = step % recipe.checkpoint_every == 0 and run.guard.in_a_row == 0
    if due or last or stop:
        check_weights(step, run.modules(), directory.steps)
        directory.save(step, run.modules(), run.optimizers, {"guard": run.guard.state_dict()}, seconds)
        directory.publish(run.published)


def _largest(accelerator: Accelerator, number: int) -> int:
    """The largest over all processes."""
    if accelerator.num_processes == 1:
        return number
    return int(accelerator.gather(torch.tensor([number], device=accelerator.device)).max())


def _step(run: _Run, step: int) -> tuple[list[Tensor], list[Tensor], int]:
    """One optimiser step. Returns the losses, their weights and the teacher's evaluations on each image."""
    recipe, accelerator = run.recipe, run.accelerator
    for group in run.optimizer.param_groups:
        group["lr"] = group["initial_lr"] * recipe.learning_rate_factor(step)
    total = recipe.data.batch_size
    share = total // accelerator.num_processes
    part = slice(accelerator.process_index * share, (accelerator.process_index + 1) * share)
    indices = epoch_order(len(run.images), step * total, total, recipe.seed)[part]
    x0, labels = run.images.batch(indices)
    x0, labels = x0.to(accelerator.device), None if labels is None else labels.to(accelerator.device)
    generator = step_generator(recipe.seed, step, accelerator.device)
    torch.manual_seed(generator.initial_seed() + accelerator.process_index)  # dropout inside the networks
    batch = draw_batch(
        recipe.objectives,
        run.student,
        x0,
        labels,
        total=total,
        part=part,
        label_dropout=recipe.label_dropout,
        generator=generator,
    )
    run.module.train()
    losses = run.wrapped(batch, run.target, run.teacher)
    run.optimizer.zero_grad()
    weights = backward(
        run.module,
        losses,
        factors=recipe.loss_factors,
        adaptive=recipe.adaptive_balance,
        reduce=lambda gradient: accelerator.reduce(gradient, "mean"),
    )
    measured = [loss.detach().float() for loss in losses] + [gradient_norm(run.student.parameters()).float()]
    *losses, norm = accelerator.reduce(torch.stack(measured), "mean")
    if _allowed(run, step, batch, losses, norm):
        run.optimizer.step()
        move_average(run.published, run.student, warmed_decay(recipe.ema, step))
        if run.target is not None:
            move_average(run.target, run.student, recipe.target_ema)
    pairs = zip(recipe.objectives, batch.draws, strict=True)
    return losses, weights, sum(objective.teacher_evaluations(draw) for objective, draw in pairs)


def _allowed(run: _Run, step: int, batch: Batch, losses: list[Tensor], norm: Tensor) -> bool:
    """The guard's verdict on a step; for the first of a row of skipped ones, a warning that says where it went wrong."""
    names = [type(objective).__name__ for objective in run.recipe.objectives]
    guard = run.guard
    if guard.allows(step + 1, dict(zip(names, map(float, losses), strict=True)), float(norm)):
        return True
    if guard.in_a_row == 1 and not guard.spiked:
        models = {"student": run.student, "target": run.target, "teacher": run.teacher}
        seed = step_generator(run.recipe.seed, step, run.accelerator.device).initial_seed()
        guard.found = first_bad_value(partial(run.module, batch), models, run.accelerator, seed)
    if guard.in_a_row == 1 and run.accelerator.is_main_process:
        _LOG.warning("skipped %s", guard.words())
    return False


class _Log:
    """Means of the numbers between two lines of metrics.jsonl; the same numbers go to TensorBoard."""

    def __init__(self, run: _Run, directory: RunDirectory, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # here, because its import takes seconds

        self._run, self._directory = run, directory
        self._writer = SummaryWriter(str(directory.path), purge_step=step + 1)
        self._names = [type(objective).__name__ for objective in run.recipe.objectives]
        self._rows: list[list[float]] = []
        self._last = time.monotonic()

    def add(self, losses: list[Tensor], weights: list[Tensor], evaluations: int) -> None:
        self._rows.append([float(v) for v in (*losses, *weights)] + [float(evaluations)])

    def write(self, step: int, elapsed: float) -> str:
        """Write one line; returns the losses in words. Skipped steps are counted and in no mean."""
        row: dict[str, float] = {"step": step, "seconds": round(elapsed, 3), "skipped": self._run.guard.skipped}
        row |= self._means()
        row["learning_rate"] = self._run.optimizer.param_groups[0]["lr"]
        self._directory.log(row)
        for name, value in row.items():
            if name != "step":
                self._writer.add_scalar(name, value, step)
        self._writer.flush()
        losses = (name for name in self._names if f"loss/{name}" in row)
        return ", ".join(f"{name} {row[f'loss/{name}']:.4g}" for name in losses)

    def _means(self) -> dict[str, float]:
        """Means since the last line, empty where every step was skipped."""
        if not self._rows:
            return {}
        means = [sum(column) / len(self._rows) for column in zip(*self._rows, strict=True)]
        count = len(self._names)
        row = {f"loss/{name}": value for name, value in zip(self._names, means[:count], strict=True)}
        row |= {f"weight/{name}": value for name, value in zip(self._names[1:], means[count + 1 : -1], strict=True)}
        now = time.monotonic()
        row["images_per_second"] = len(self._rows) * self._run.recipe.data.batch_size / max(now - self._last, 1e-9)
        row["teacher_evaluations_per_image"] = means[-1]
        self._rows, self._last = [], now
        return row
