"""The training loop: one function from a recipe to a run directory."""

from __future__ import annotations

import logging
import math
import signal
import time
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from ctm.data import Images, epoch_order, load_images
from ctm.objectives import Networks
from ctm.teachers import load_teacher
from ctm.training.adversary import Adversary, adversary
from ctm.training.diagnosis import first_bad_value
from ctm.training.ema import Average, frozen_copy, move_average
from ctm.training.engine import ScaledOptimizer, set_precision
from ctm.training.guard import StepGuard, check_weights
from ctm.training.interrupt import InterruptLater, Terminated
from ctm.training.log import MetricsLog, loss_names, peak_memory
from ctm.training.pictures import save_sample_grid
from ctm.training.processes import largest, on_main
from ctm.training.progress import TrainingBar
from ctm.training.recipe import Recipe
from ctm.training.run_directory import RunDirectory
from ctm.training.step import Batch, LossModule, backward, draw_batch, rows_of_process, step_generator
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
    optimizer: ScaledOptimizer
    averages: list[Any]
    target: Any
    teacher: Any
    guards: dict[str, StepGuard]
    adversary: Adversary | None = None

    @property
    def student(self) -> Any:
        return self.module.student

    @property
    def published(self) -> Any:
        return self.averages[0]

    def modules(self) -> dict[str, torch.nn.Module]:
        """What a checkpoint holds."""
        kept = {"student": self.student, "ema": self.published, "target": self.target}
        kept |= {f"ema-{profile.name}": model for profile, model in self.others()}
        kept["discriminator"] = self.adversary and self.adversary.network
        return {name: module for name, module in kept.items() if module is not None}

    @property
    def optimizers(self) -> dict[str, Any]:
        """What a checkpoint holds of optimisers."""
        return {"student": self.optimizer} | ({"discriminator": self.adversary.optimizer} if self.adversary else {})

    @property
    def skipping(self) -> bool:
        """Whether the student's or the discriminator's last step was skipped."""
        return any(guard.in_a_row > 0 for guard in self.guards.values())

    def others(self) -> list[tuple[Average, Any]]:
        """The averages besides the published one."""
        return list(zip(self.recipe.averages, self.averages, strict=True))[1:]


def train(
    recipe: Recipe, out: Path, settings: str, *, images: Images | None = None, title: str = "train"
) -> RunDirectory:
    """Train by `recipe` in the run directory `out`, going on from its newest checkpoint where there is one.

    settings: the recipe as YAML; it is kept as config.yaml and tells whether a used directory holds the same run.
    images: the data where the caller has it already. Works under accelerate's launcher in any number of processes; the
    batch of the recipe is divided among them. Returns the run directory, whose model/ holds the EMA weights.
    Raises ValueError for settings that do not fit each other or the directory, TrainingDiverged where too many steps in a
    row were skipped, CannotWrite where the disk is full or permission lacks; after a checkpoint, KeyboardInterrupt for Ctrl-C
    and Terminated for SIGTERM. In processes other than the main one, SystemExit for what is wrong with the main one's files.
    """
    processor = not torch.accelerator.is_available()  # said aloud, or processes on CPUs do not find each other
    accelerator = Accelerator(cpu=processor, mixed_precision="no")  # the recipe's precision is set by ours alone
    run = _prepare(recipe, accelerator, images or _load(recipe))
    directory = RunDirectory(out, recipe.keep_checkpoints)
    reached = on_main(accelerator, lambda: _open(directory, settings))
    step, elapsed = 0, 0.0
    if reached > 0:
        checkpoint = directory.load(reached, run.modules(), run.optimizers)
        step, elapsed = checkpoint.step, checkpoint.elapsed
        for name, guard in run.guards.items():
            guard.load_state_dict(checkpoint.extra["guards"][name])
    on_main(accelerator, lambda: _go_on(run, directory, step))
    _loop(run, directory, step, elapsed, title)
    return directory


def _open(directory: RunDirectory, settings: str) -> int:
    """Claim the directory; the step to go on from, 0 for the start."""
    directory.claim(settings)
    return directory.latest() or 0


def _go_on(run: _Run, directory: RunDirectory, step: int) -> None:
    """Bring the files that are not in the checkpoint to its step."""
    directory.forget_after(step)
    if step > 0:
        _publish(run, directory)


def _publish(run: _Run, directory: RunDirectory) -> None:
    directory.publish(run.published)
    for profile, average in run.others():
        directory.publish(average, f"model-{profile.name}")


def _load(recipe: Recipe) -> Images:
    data = recipe.data
    return load_images(data.name, data.size, data.channels, data.split)


def _prepare(recipe: Recipe, accelerator: Accelerator, images: Images, *, stand_in: bool = False) -> _Run:
    """Networks, optimiser and data, in place on the device. stand_in: a copy of the student is the teacher where a teacher
    is needed and none is named."""
    rows_of_process(recipe.data.batch_size, accelerator.num_processes, 0, recipe.engine.accumulate)
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
    averages = [frozen_copy(student) for _ in recipe.averages]
    target = frozen_copy(student) if needs_target else None
    if teacher is None and needs_teacher:
        teacher = frozen_copy(student)
    teacher = teacher.to(accelerator.device) if teacher is not None else None
    set_precision((student, target, teacher), recipe.engine.precision)
    opponent = adversary(
        recipe.objectives, Networks(student, target, teacher), accelerator, recipe.discriminator_optimizer
    )
    wrapped, optimizer = accelerator.prepare(module, optimizer)
    scaled = ScaledOptimizer(optimizer, accelerator.device, recipe.engine)
    guards = {"student": StepGuard(recipe.skip_limit, recipe.spike_factor)}
    if opponent is not None:  # its penalties come now and then, and make its norm jump: no spikes
        guards["discriminator"] = StepGuard(recipe.skip_limit, None)
    return _Run(recipe, accelerator, images, module, wrapped, scaled, averages, target, teacher, guards, opponent)


def _loop(run: _Run, directory: RunDirectory, step: int, elapsed: float, title: str) -> None:
    recipe, main = run.recipe, run.accelerator.is_main_process
    base_rates = [group["lr"] for group in run.optimizer.param_groups] if step == 0 else None
    rates = base_rates or [group["initial_lr"] for group in run.optimizer.param_groups]
    for group, rate in zip(run.optimizer.param_groups, rates, strict=True):
        group["initial_lr"] = rate
    names = loss_names(recipe.objectives)
    with directory.writing():
        log = MetricsLog(directory, names, batch_size=recipe.data.batch_size, step=step) if main else None
    started = time.monotonic() - elapsed
    with InterruptLater() as interrupt, TrainingBar(title, recipe.steps, step, shown=main) as bar:
        while step < recipe.steps:
            numbers = _step(run, step)
            step += 1
            bar.advance()
            if log is not None and not run.skipping:
                log.add(numbers)
            stop = largest(run.accelerator, interrupt.requested)
            seconds = time.monotonic() - started
            on_main(run.accelerator, partial(_record, run, directory, log, bar, step, seconds, stop != 0))
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
    for guard in run.guards.values():
        guard.check(step, directory.steps)
    with directory.writing():
        if step % recipe.log_every == 0 or last:
            bar.note(log.write(step, seconds, _state(run)))
        if step % recipe.sample_every == 0 or last:
            save_sample_grid(run.published, directory.samples / f"{step:06d}.png")
    if last or stop or (step % recipe.checkpoint_every == 0 and not run.skipping):
        check_weights(step, run.modules(), directory.steps)
        extra = {"guards": {name: guard.state_dict() for name, guard in run.guards.items()}}
        directory.save(step, run.modules(), run.optimizers, extra, seconds)
        _publish(run, directory)


def _state(run: _Run) -> dict[str, float]:
    """Numbers that are logged as they stand, not as means over steps."""
    rate = run.optimizer.param_groups[0]["lr"]
    skipped = sum(guard.skipped for guard in run.guards.values())
    return {"skipped": skipped, "learning_rate": rate, "peak_memory_mib": peak_memory(run.accelerator.device)}


def _step(run: _Run, step: int) -> dict[str, float | Tensor]:
    """One step of the student, of the discriminator, or of both. Returns its numbers: each loss, each weight, gradient norms,
    the teacher's evaluations, how the discriminator does."""
    recipe, accelerator, opponent = run.recipe, run.accelerator, run.adversary
    for group in run.optimizer.param_groups:
        group["lr"] = group["initial_lr"] * recipe.learning_rate_factor(step)
    seed = step_generator(recipe.seed, step, accelerator.device).initial_seed()
    torch.manual_seed(seed + accelerator.process_index)  # dropout inside the networks
    run.module.train()
    numbers: dict[str, float | Tensor] = {}
    skipped_before = run.guards["student"].skipped
    if opponent is not None and opponent.objective.trains_discriminator(step):
        opponent.begin()
    if opponent is None or opponent.objective.trains_student(step):
        numbers |= _student_step(run, step)
    else:
        for part in _parts(run):
            batch = _batch(run, step, part)
            with torch.no_grad():  # a data-parallel wrapper expects no backward pass then
                run.wrapped(batch, run.target, run.teacher, fake_only=True)
            _teach_adversary(run, batch, step)
    skipped = run.guards["student"].skipped > skipped_before
    if opponent is not None and opponent.objective.trains_discriminator(step) and not skipped:
        numbers |= opponent.move(partial(_discriminator_allowed, run, step))
    return numbers


def _parts(run: _Run) -> list[slice]:
    """The rows of the common batch that this process takes, in pieces."""
    accelerator = run.accelerator
    pieces = run.recipe.engine.accumulate
    return rows_of_process(run.recipe.data.batch_size, accelerator.num_processes, accelerator.process_index, pieces)


def _teach_adversary(run: _Run, batch: Batch, step: int) -> None:
    """Gradients of the discriminator on a piece of the batch and the student's last fakes."""
    opponent, fake = run.adversary, run.module.fake
    assert opponent is not None
    assert fake is not None
    networks = Networks(run.student, run.target, run.teacher, opponent.network)
    opponent.learn(batch, fake, networks, step, pieces=run.recipe.engine.accumulate)


def _student_step(run: _Run, step: int) -> dict[str, float | Tensor]:
    """One step of the student's optimiser."""
    recipe, accelerator, pieces = run.recipe, run.accelerator, run.recipe.engine.accumulate
    run.optimizer.zero_grad()
    numbers: dict[str, float | Tensor] = {}
    for index, part in enumerate(_parts(run)):
        together = accelerator.no_sync(run.wrapped) if index + 1 < pieces else nullcontext()
        with together:  # gradients travel once, with the last piece
            for name, value in _piece(run, _batch(run, step, part), step).items():
                numbers[name] = numbers.get(name, 0.0) + value / pieces
    for name in [name for name in numbers if name.startswith("loss/")]:
        numbers[name] = accelerator.reduce(numbers[name], "mean")
    if recipe.engine.precision == "fp16":
        numbers["loss_scale"] = run.optimizer.scale
    numbers["gradient_norm"], moved = run.optimizer.step(partial(_allowed, run, step, numbers))
    if moved:
        for profile, average in zip(recipe.averages, run.averages, strict=True):
            move_average(average, run.student, profile.at(step))
        if run.target is not None:
            move_average(run.target, run.student, recipe.target_decay(step))
    return numbers


def _allowed(run: _Run, step: int, numbers: dict[str, float | Tensor], norm: Tensor) -> bool:
    """The guard's verdict on the student's step. A gradient that overflowed at a scale of losses above 1 is the scaler's."""
    losses = {n.removeprefix("loss/"): float(v) for n, v in numbers.items() if n.startswith("loss/")}
    measured = float(run.accelerator.reduce(norm.detach(), "mean"))
    if run.optimizer.scale > 1 and not math.isfinite(measured) and all(map(math.isfinite, losses.values())):
        return True
    return run.guards["student"].allows(step + 1, losses, measured) or _report(run, step, run.guards["student"])


def _discriminator_allowed(run: _Run, step: int, loss: Tensor, norm: Tensor) -> bool:
    """The guard's verdict on the discriminator's step."""
    guard = run.guards["discriminator"]
    return guard.allows(step + 1, {"the discriminator": float(loss)}, float(norm)) or _report(run, step, guard)


def _report(run: _Run, step: int, guard: StepGuard) -> bool:
    """For the first of a row of skipped steps, find out and warn where it went wrong. Returns False."""
    if guard.in_a_row > 1:
        return False
    opponent = run.adversary and run.adversary.network
    models = {"student": run.student, "target": run.target, "teacher": run.teacher, "discriminator": opponent}
    if not guard.spiked:
        seed = step_generator(run.recipe.seed, step, run.accelerator.device).initial_seed()

        def forward(target: Any, teacher: Any) -> None:
            for part in _parts(run):
                run.module(_batch(run, step, part), target, teacher, opponent)

        guard.found = first_bad_value(forward, models, run.accelerator, seed + run.accelerator.process_index)
    if run.accelerator.is_main_process:
        _LOG.warning("skipped %s", guard.words())
    return False


def _batch(run: _Run, step: int, part: slice) -> Batch:
    """Some rows of a step's common batch."""
    recipe, device = run.recipe, run.accelerator.device
    total = recipe.data.batch_size
    x0, labels = run.images.batch(epoch_order(len(run.images), step * total, total, recipe.seed)[part])
    return draw_batch(
        recipe.objectives_at(step),
        run.student,
        x0.to(device),
        None if labels is None else labels.to(device),
        total=total,
        part=part,
        label_dropout=recipe.label_dropout,
        generator=step_generator(recipe.seed, step, device),
        step=step,
    )


def _piece(run: _Run, batch: Batch, step: int) -> dict[str, float | Tensor]:
    """Forward and backward through one piece of a batch: its gradients are added to the others'. Returns its numbers.

    The adaptive weights are found for each piece from its own gradients, over all processes (as in the official code)."""
    recipe, active = run.recipe, run.module.active(batch)
    names = [loss_names(recipe.objectives)[index] for index in active]
    norms: list[Tensor] = []

    def reduce(gradient: Tensor) -> Tensor:
        gradient = run.accelerator.reduce(gradient, "mean")
        norms.append(gradient.norm())
        return gradient

    losses = run.wrapped(batch, run.target, run.teacher, run.adversary and run.adversary.network)
    weights = backward(
        run.module,
        losses,
        factors=None if recipe.loss_factors is None else [recipe.loss_factors[index] for index in active],
        ranges=[recipe.objectives[index].weight_range for index in active],
        adaptive=recipe.adaptive_balance,
        reduce=reduce,
        scale=run.optimizer.scale / recipe.engine.accumulate,
    )
    numbers: dict[str, float | Tensor] = {}
    for name, loss in zip(names, losses, strict=True):
        numbers[f"loss/{name}"] = loss.detach()
    numbers |= {f"weight/{name}": weight for name, weight in zip(names[1:], weights[1:], strict=True)}
    numbers |= {f"last_layer_gradient/{name}": norm for name, norm in zip(names, norms, strict=False)}
    numbers["teacher_evaluations_per_image"] = sum(
        recipe.objectives[index].teacher_evaluations(batch.draws[index]) for index in active
    )
    if run.adversary is not None and run.adversary.objective.trains_discriminator(step):
        _teach_adversary(run, batch, step)
    return numbers
