"""The training loop: one function from a recipe to a run directory."""

from __future__ import annotations

import signal
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import Accelerator
from torch import Tensor

from ctm.data import Images, epoch_order, load_images, random_flips
from ctm.objectives import Matching, Networks
from ctm.teachers import load_teacher
from ctm.training.adversary import Adversary, adversary
from ctm.training.classes import in_classes_of, name_classes
from ctm.training.ema import Average, frozen_copy, move_average
from ctm.training.engine import ScaledOptimizer, compile_networks, set_layout, set_precision
from ctm.training.evaluation import SelfEvaluation
from ctm.training.guard import StepGuard
from ctm.training.interrupt import InterruptLater, Terminated
from ctm.training.log import MetricsLog, loss_names
from ctm.training.processes import largest
from ctm.training.progress import TrainingBar
from ctm.training.recipe import Recipe
from ctm.training.recording import record, take_up
from ctm.training.run_directory import RunDirectory
from ctm.training.sharding import WholeModule, WholeOptimizer, reshard, shard_networks
from ctm.training.step import Batch, LossModule, backward, draw_batch, last_layer, rows_of_process, step_generator
from ctm.training.student import check_teacher, start_from_student, start_from_teacher
from ctm.training.trackers import check_trackers, open_trackers
from ctm.training.verdict import Verdict, step_guards

__all__ = ["train"]


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
    plain: Any  # where the weights are sharded, a whole model in the main process, else None
    sharded: bool
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

    def parts(self, *, gather: bool) -> tuple[dict[str, Any], dict[str, Any]]:
        """What a checkpoint holds: modules and optimisers. All processes call this at the same moment.

        gather: bring sharded tensors together, for saving."""
        if not self.sharded:
            return dict(self.modules()), self.optimizers
        modules = {name: WholeModule(module, gather=gather) for name, module in self.modules().items()}
        return modules, {name: WholeOptimizer(held, gather=gather) for name, held in self.optimizers.items()}

    def whole_averages(self) -> dict[str, Any]:
        """The averages by the names of their directories, to sample from and publish in the main process. All processes call
        this at the same moment."""
        names = ["model", *(f"model-{profile.name}" for profile, _ in self.others())]
        models = self.averages
        if self.sharded:
            states = [WholeModule(average, gather=True).state_dict() for average in models]
            models = [] if self.plain is None else [frozen_copy(self.plain) for _ in states]
            for model, state in zip(models, states, strict=bool(models)):
                model.load_state_dict(state)
        return dict(zip(names, models, strict=bool(models)))

    def together(self, last: bool) -> AbstractContextManager[Any]:
        """Gradients of processes are averaged in the backward pass within, for the last piece of a batch only."""
        if self.sharded:
            self.student.network.set_requires_gradient_sync(last)
            return nullcontext()
        return nullcontext() if last else self.accelerator.no_sync(self.wrapped)


def train(
    recipe: Recipe, out: Path, settings: str, *, images: Images | None = None, title: str = "train"
) -> RunDirectory:
    """Train by `recipe` in the run directory `out`, going on from its newest checkpoint where there is one.

    settings: the recipe as YAML; it is kept as config.yaml and tells whether a used directory holds the same run.
    images: the data where the caller has it already. Works under accelerate's launcher in any number of processes; the
    batch of the recipe is divided among them. Returns the run directory, whose model/ holds the EMA weights.
    Raises ValueError for settings that do not fit each other or the directory, TrainingDiverged where too many steps in a
    row were skipped, CannotWrite where the disk is full or permission lacks; after a checkpoint, KeyboardInterrupt for Ctrl-C
    and Terminated for SIGTERM. Of several processes the main one raises and the others leave with SystemExit.
    """
    processor = not torch.accelerator.is_available()  # said aloud, or processes on CPUs do not find each other
    accelerator = Accelerator(cpu=processor, mixed_precision="no")  # the recipe's precision is set by ours alone
    run = _prepare(recipe, accelerator, images or _load(recipe))
    directory = RunDirectory(out, recipe.keep_checkpoints)
    step, elapsed = take_up(run, directory, settings)
    trackers = (
        open_trackers(recipe.trackers, title, out, yaml.safe_load(settings)) if accelerator.is_main_process else []
    )
    try:
        _loop(run, directory, step, elapsed, title, trackers)
    finally:
        for tracker in trackers:
            tracker.finish()
    return directory


def _load(recipe: Recipe) -> Images:
    data = recipe.data
    columns: dict[str, Any] = {"image": data.image, "label": data.label, "max_gb": data.max_gb}
    return load_images(data.name, data.size, data.channels, data.split, **columns)


def _prepare(recipe: Recipe, accelerator: Accelerator, images: Images, *, stand_in: bool = False) -> _Run:
    """Networks, optimiser and data, in place on the device. stand_in: a copy of the student is the teacher where a teacher
    is needed and none is named."""
    rows_of_process(recipe.data.batch_size, accelerator.num_processes, 0, recipe.engine.accumulate)
    check_trackers(recipe.trackers)
    needs_teacher = any(objective.needs_teacher for objective in recipe.objectives)
    if needs_teacher and recipe.teacher is None and not stand_in:
        raise ValueError("this recipe matches a teacher's trajectory but names none: give --teacher MODEL")
    torch.manual_seed(recipe.seed)
    student = recipe.model.build(recipe.network, images.shape, images.num_classes)
    teacher = None
    if recipe.teacher is not None:
        teacher = load_teacher(recipe.teacher)
        images = in_classes_of(teacher, "the teacher", images)
        check_teacher(teacher, student)
        start_from_teacher(student, teacher)
    if recipe.student is not None:
        start = start_from_student(student, recipe.student)
        images = in_classes_of(start, "the model to start from", images, settled=bool(teacher and teacher.class_names))
    name_classes(student, images)
    for objective in recipe.objectives:
        if isinstance(objective, Matching):
            objective.check(student, teacher)
    student = student.to(accelerator.device)
    teacher = frozen_copy(student) if teacher is None and needs_teacher else teacher
    teacher = teacher.to(accelerator.device) if teacher is not None else None
    if recipe.engine.channels_last:
        set_layout([student] if teacher is None else [student, teacher])
    needs_target = any(objective.needs_target for objective in recipe.objectives)
    sharded = recipe.engine.sharding == "fsdp2" and accelerator.num_processes > 1
    module = LossModule(student, recipe.objectives, sharded=sharded)
    averages = [frozen_copy(student) for _ in recipe.averages]
    target = frozen_copy(student) if needs_target else None
    working = (student, target, teacher)
    set_precision(working, recipe.engine.precision)
    opponent = adversary(recipe.objectives, Networks(*working), accelerator, recipe.discriminator_optimizer)
    if sharded and opponent is not None:
        raise ValueError("engine.sharding fsdp2 does not go with an Adversarial objective: set it to none")
    if recipe.engine.compile is not None:
        compile_networks(working, recipe.engine.compile, eager=module.last_layer)
    plain = frozen_copy(student).cpu() if sharded and accelerator.is_main_process else None
    if sharded:
        divided = [student, *averages, *([] if target is None else [target])]
        shard_networks(divided, [last_layer(model.network) for model in divided], accelerator.device)
        wrapped, optimizer = module, accelerator.prepare(recipe.optimizer(student.parameters()))
    else:
        wrapped, optimizer = accelerator.prepare(module, recipe.optimizer(student.parameters()))
    scaled = ScaledOptimizer(optimizer, accelerator.device, recipe.engine)
    networks = (module, wrapped, scaled, averages, target, teacher, plain, sharded)
    return _Run(recipe, accelerator, images, *networks, step_guards(recipe, opponent is not None), opponent)


def _loop(
    run: _Run, directory: RunDirectory, step: int, elapsed: float, title: str, trackers: Sequence[Any] = ()
) -> None:
    recipe, main = run.recipe, run.accelerator.is_main_process
    base_rates = [group["lr"] for group in run.optimizer.param_groups] if step == 0 else None
    rates = base_rates or [group["initial_lr"] for group in run.optimizer.param_groups]
    for group, rate in zip(run.optimizer.param_groups, rates, strict=True):
        group["initial_lr"] = rate
    names = loss_names(recipe.objectives)
    with directory.writing():
        log = MetricsLog(directory, names, recipe.data.batch_size, step, trackers) if main else None
    settings, place = recipe.evaluation, run.accelerator.device
    judge = SelfEvaluation(settings, run.images, directory, step, place) if settings is not None and main else None
    started = time.monotonic() - elapsed
    with InterruptLater() as interrupt, TrainingBar(title, recipe.steps, step, shown=main) as bar:
        while step < recipe.steps:
            numbers = _step(run, step)
            step += 1
            bar.advance()
            if log is not None and not run.skipping:
                log.add(numbers)
            stop = largest(run.accelerator, interrupt.requested)
            record(run, directory, log, bar, step, time.monotonic() - started, judge, stop=stop != 0)
            if stop == signal.SIGINT:
                raise KeyboardInterrupt
            if stop == signal.SIGTERM:
                bar.say(f"stopped by SIGTERM after the checkpoint of step {step}; the same command goes on from there")
                raise Terminated


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
    verdict = Verdict(run, step, lambda: [_batch(run, step, part) for part in _parts(run)])
    skipped_before = run.guards["student"].skipped
    if opponent is not None and opponent.objective.trains_discriminator(step):
        opponent.begin()
    if opponent is None or opponent.objective.trains_student(step):
        numbers |= _student_step(run, step, verdict)
    else:
        for part in _parts(run):
            batch = _batch(run, step, part)
            with torch.no_grad():  # a data-parallel wrapper expects no backward pass then
                run.wrapped(batch, run.target, run.teacher, fake_only=True)
            _teach_adversary(run, batch, step)
    skipped = run.guards["student"].skipped > skipped_before
    if opponent is not None and opponent.objective.trains_discriminator(step) and not skipped:
        numbers |= opponent.move(verdict.on_discriminator)
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


def _student_step(run: _Run, step: int, verdict: Verdict) -> dict[str, float | Tensor]:
    """One step of the student's optimiser."""
    recipe, accelerator, pieces = run.recipe, run.accelerator, run.recipe.engine.accumulate
    run.optimizer.zero_grad()
    numbers: dict[str, float | Tensor] = {}
    for index, part in enumerate(_parts(run)):
        with run.together(last=index + 1 == pieces):
            for name, value in _piece(run, _batch(run, step, part), step).items():
                numbers[name] = numbers.get(name, 0.0) + value / pieces
    for name in [name for name in numbers if name.startswith("loss/")]:
        numbers[name] = accelerator.reduce(numbers[name], "mean")
    if recipe.engine.precision == "fp16":
        numbers["loss_scale"] = run.optimizer.scale
    numbers["gradient_norm"], moved = run.optimizer.step(partial(verdict.on_student, numbers))
    if run.sharded:
        reshard([run.student] if run.target is None else [run.student, run.target])
    if moved:
        with run.optimizer.evaluation_weights():
            for profile, average in zip(recipe.averages, run.averages, strict=True):
                move_average(average, run.student, profile.at(step))
            if run.target is not None:
                move_average(run.target, run.student, recipe.target_decay(step))
    return numbers


def _batch(run: _Run, step: int, part: slice) -> Batch:
    """Some rows of a step's common batch."""
    recipe, device = run.recipe, run.accelerator.device
    total = recipe.data.batch_size
    x0, labels = run.images.batch(epoch_order(len(run.images), step * total, total, recipe.seed)[part])
    if recipe.data.flip:
        x0 = torch.where(random_flips(total, recipe.seed, step)[part].view(-1, 1, 1, 1), x0.flip(-1), x0)
    layout = torch.channels_last if recipe.engine.channels_last and x0.dim() == 4 else torch.preserve_format
    return draw_batch(
        recipe.objectives_at(step),
        run.student,
        x0.to(device, memory_format=layout),
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
