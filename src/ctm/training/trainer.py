"""The training loop: one function from a recipe to a run directory."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from ctm.data import Images, epoch_order, load_images
from ctm.teachers import load_teacher
from ctm.training.ema import frozen_copy, move_average, warmed_decay
from ctm.training.interrupt import InterruptLater
from ctm.training.pictures import save_sample_grid
from ctm.training.progress import TrainingBar
from ctm.training.recipe import Recipe
from ctm.training.run_directory import RunDirectory
from ctm.training.step import LossModule, backward, draw_batch, step_generator
from ctm.training.student import check_teacher, start_from_teacher

__all__ = ["TrainingDiverged", "train"]


class TrainingDiverged(RuntimeError):
    """A loss is not a number; the last checkpoint is from before that."""


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

    @property
    def student(self) -> Any:
        return self.module.student

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
    Raises ValueError for settings that do not fit each other or the directory, TrainingDiverged for a loss that is not a
    number, KeyboardInterrupt (after a checkpoint) for Ctrl-C.
    """
    accelerator = Accelerator(cpu=not torch.accelerator.is_available())  # so that processes on CPUs find each other
    run = _prepare(recipe, accelerator, images or _load(recipe))
    directory = RunDirectory(out)
    if accelerator.is_main_process:
        directory.claim(settings)
    accelerator.wait_for_everyone()
    step, elapsed = 0, 0.0
    checkpoint = directory.latest()
    if checkpoint is not None:
        step, elapsed = directory.load(checkpoint, run.modules(), run.optimizer)
    if accelerator.is_main_process:
        directory.forget_after(step)
    _loop(run, directory, step, elapsed, title)
    return directory


def _load(recipe: Recipe) -> Images:
    data = recipe.data
    return load_images(data.name, data.size, data.channels, data.split)


def _prepare(recipe: Recipe, accelerator: Accelerator, images: Images) -> _Run:
    """Networks, optimiser and data, in place on the device."""
    if recipe.data.batch_size % accelerator.num_processes:
        raise ValueError(
            f"data.batch_size {recipe.data.batch_size} does not divide among {accelerator.num_processes} processes"
        )
    needs_teacher = any(objective.needs_teacher for objective in recipe.objectives)
    if needs_teacher and recipe.teacher is None:
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
    teacher = teacher.to(accelerator.device) if teacher is not None else None
    wrapped, optimizer = accelerator.prepare(module, optimizer)
    return _Run(recipe, accelerator, images, module, wrapped, optimizer, published, target, teacher)


def _loop(run: _Run, directory: RunDirectory, step: int, elapsed: float, title: str) -> None:
    recipe, main = run.recipe, run.accelerator.is_main_process
    base_rates = [group["lr"] for group in run.optimizer.param_groups] if step == 0 else None
    rates = base_rates or [group["initial_lr"] for group in run.optimizer.param_groups]
    for group, rate in zip(run.optimizer.param_groups, rates, strict=True):
        group["initial_lr"] = rate
    log = _Log(run, directory, step) if main else None
    started = time.monotonic() - elapsed
    with InterruptLater() as interrupt, TrainingBar(title, recipe.steps, step, shown=main) as bar:
        while step < recipe.steps:
            losses, weights, evaluations = _step(run, step)
            step += 1
            bar.advance()
            if not math.isfinite(float(sum(losses))):
                raise TrainingDiverged(
                    f"step {step}: a loss is not a number ({[float(v) for v in losses]}). The newest checkpoint in "
                    f"{directory.checkpoints} is from before; lower the learning rate or change the recipe"
                )
            last = step == recipe.steps
            stop = _any_process(run.accelerator, interrupt.requested)
            if log is not None:
                log.add(losses, weights, evaluations)
                if step % recipe.log_every == 0 or last:
                    bar.note(log.write(step, time.monotonic() - started))
                if step % recipe.sample_every == 0 or last:
                    save_sample_grid(run.published, directory.samples / f"{step:06d}.png")
                if step % recipe.checkpoint_every == 0 or last or stop:
                    directory.save(step, run.modules(), run.optimizer, time.monotonic() - started)
                    directory.publish(run.published)
            run.accelerator.wait_for_everyone()
            if stop:
                raise KeyboardInterrupt


def _any_process(accelerator: Accelerator, flag: bool) -> bool:
    """Whether any process raised the flag."""
    if accelerator.num_processes == 1:
        return flag
    return bool(accelerator.reduce(torch.tensor(float(flag), device=accelerator.device), "sum") > 0)


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
        recipe.objectives_at(step),
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
    run.optimizer.step()
    move_average(run.published, run.student, warmed_decay(recipe.ema, step))
    if run.target is not None:
        move_average(run.target, run.student, recipe.target_decay(step))
    losses = [accelerator.reduce(loss.detach(), "mean") for loss in losses]
    pairs = zip(recipe.objectives, batch.draws, strict=True)
    return losses, weights, sum(objective.teacher_evaluations(draw) for objective, draw in pairs)


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
        """Write one line; returns the losses in words."""
        means = [sum(column) / len(self._rows) for column in zip(*self._rows, strict=True)]
        count = len(self._names)
        row: dict[str, float] = {"step": step, "seconds": round(elapsed, 3)}
        row |= {f"loss/{name}": value for name, value in zip(self._names, means[:count], strict=True)}
        row |= {f"weight/{name}": value for name, value in zip(self._names[1:], means[count + 1 : -1], strict=True)}
        now = time.monotonic()
        row["images_per_second"] = len(self._rows) * self._run.recipe.data.batch_size / max(now - self._last, 1e-9)
        row["teacher_evaluations_per_image"] = means[-1]
        row["learning_rate"] = self._run.optimizer.param_groups[0]["lr"]
        self._rows, self._last = [], now
        self._directory.log(row)
        for name, value in row.items():
            if name != "step":
                self._writer.add_scalar(name, value, step)
        self._writer.flush()
        return ", ".join(f"{name} {value:.4g}" for name, value in zip(self._names, means, strict=False))
