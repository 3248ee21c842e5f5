"""The training loop: one function from a recipe to a run directory."""

from __future__ import annotations

import signal
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
import yaml
from accelerate import Accelerator
from torch import Tensor

from ctm.console import text_console
from ctm.data import Dataset
from ctm.objectives import Networks
from ctm.objectives.player import student_learns
from ctm.training.assembly import Run, check_sources, load_data, prepare
from ctm.training.ema import move_average
from ctm.training.interrupt import InterruptLater, Terminated
from ctm.training.log import MetricsLog, loss_names
from ctm.training.players import PlayerInTraining
from ctm.training.processes import all_reduce_max, check_launch
from ctm.training.progress import TrainingBar
from ctm.training.recipe import Recipe
from ctm.training.recording import Recorder, TakenUp, take_up
from ctm.training.run_directory import RunDirectory
from ctm.training.sample_grids import GridClock
from ctm.training.self_evaluation import SelfEvaluation
from ctm.training.sharding import reshard
from ctm.training.step import Batch, backward, draw_batch, rows_of_process, step_generator
from ctm.training.trackers import open_trackers
from ctm.training.unused import takes_all, without_gradient
from ctm.training.verdict import Verdict

__all__ = ["train"]

_GRID = 1000  # above the numbers of all signals: the main process asks for a sample grid


def train(
    recipe: Recipe, out: Path, settings: str, *, images: Dataset | None = None, title: str = "train"
) -> RunDirectory:
    """Train by `recipe` in the run directory `out`, going on from its newest checkpoint where there is one.

    settings: the recipe as YAML; with the noise levels that were found where it leaves them open it is kept as config.yaml and
    tells whether a used directory holds the same run. images: the data where the caller has it already. Works under torchrun
    and accelerate's launcher in any number of processes; the batch of the recipe is divided among them. Returns the run
    directory, whose model/ holds the EMA weights.
    Raises ValueError for settings that do not fit each other or the directory, and for data or a teacher that are others than
    those the run was made from; DirectoryInUse where another process trains there; TrainingDiverged where too many steps in a
    row were skipped; CannotWrite where the disk is full or permission lacks; after a checkpoint, KeyboardInterrupt for Ctrl-C
    and Terminated for SIGTERM. Of several processes the main one raises and the others leave with SystemExit.
    """
    processor = not torch.accelerator.is_available()  # said aloud, or processes on CPUs do not find each other
    accelerator = Accelerator(cpu=processor, mixed_precision="no")  # the recipe's precision is set by ours alone
    check_launch(accelerator.num_processes, "train")
    check_sources(recipe)
    run = prepare(recipe, accelerator, images or load_data(recipe))
    settings = _with_levels(settings, run)
    directory, trackers = RunDirectory(out, recipe.keep_checkpoints), []
    try:
        taken = take_up(run, directory, settings)
        if accelerator.is_main_process:
            _say(title, taken.lines)
            trackers = open_trackers(recipe.trackers, title, out, yaml.safe_load(settings))
        _loop(run, directory, taken, title, trackers)
    finally:
        directory.release()
        for tracker in trackers:
            tracker.finish()
    return directory


def _with_levels(settings: str, run: Run) -> str:
    """The recipe's text with the noise levels that it left open, as they were found: the run is to go on with these."""
    levels, recipe = vars(run.begun.levels), run.recipe.model
    settled = {name: value for name, value in levels.items() if getattr(recipe, name) is None}
    if not settled:
        return settings
    whole = yaml.safe_load(settings)
    whole["model"] = {**(whole.get("model") or {}), **settled}
    return yaml.safe_dump(whole, sort_keys=False, allow_unicode=True)


def _say(title: str, lines: Sequence[str]) -> None:
    console = text_console()
    for line in lines:
        console.print(f"{title}: {line}")


def _loop(run: Run, directory: RunDirectory, taken: TakenUp, title: str, trackers: Sequence[object] = ()) -> None:
    recipe, main, step = run.recipe, run.accelerator.is_main_process, taken.step
    base_rates = [group["lr"] for group in run.optimizer.param_groups] if step == 0 else None
    rates = base_rates or [group["initial_lr"] for group in run.optimizer.param_groups]
    for group, rate in zip(run.optimizer.param_groups, rates, strict=True):
        group["initial_lr"] = rate
    log, judge, names, size = None, None, loss_names(recipe.objectives), recipe.data.batch_size
    if main:
        with directory.writing():
            log = MetricsLog(directory, names, size, step, trackers, begun=taken.sums)
        if recipe.evaluation is not None:
            judge = SelfEvaluation(recipe.evaluation, run.images, directory, step, run.accelerator.device)
    started = time.monotonic() - taken.elapsed
    idle_told = run.accelerator.num_processes > 1 and not run.sharded  # before the first step, by fit_to_processes
    clock = GridClock(recipe.sample_minutes)
    with InterruptLater() as interrupt, TrainingBar(title, recipe.steps, step, shown=main) as bar:
        recorder = Recorder(run, directory, log, bar, clock, judge, taken.data)
        while step < recipe.steps:
            numbers = _step(run, step)
            if not idle_told and takes_all(run, step):
                idle_told = True
                for line in without_gradient(run):
                    bar.say(line)
            step += 1
            bar.advance()
            if log is not None and not run.skipping:
                log.add(numbers)
            asked = all_reduce_max(run.accelerator, interrupt.requested + (_GRID if main and clock.due else 0))
            grid, stop = divmod(asked, _GRID)
            recorder.record(step, time.monotonic() - started, stop=stop != 0, grid=grid > 0)
            if stop == signal.SIGINT:
                raise KeyboardInterrupt
            if stop == signal.SIGTERM:
                bar.say(f"stopped by SIGTERM after the checkpoint of step {step}; the same command goes on from there")
                raise Terminated


def _step(run: Run, step: int) -> dict[str, float | Tensor]:
    """One step of the student, of players, or of both. Returns its numbers: each loss, each weight, gradient norms, the teacher's
    evaluations, how players do."""
    recipe, accelerator = run.recipe, run.accelerator
    learning = [player for player in run.players.values() if player.learns(step)]
    rate_factor = recipe.learning_rate_factor(step)
    for group in run.optimizer.param_groups:
        group["lr"] = group["initial_lr"] * rate_factor
    seed = step_generator(recipe.seed, step).initial_seed()
    torch.manual_seed(seed + accelerator.process_index)  # dropout inside the networks
    run.module.train()
    numbers: dict[str, float | Tensor] = {}
    verdict = Verdict(run, step, lambda: [_batch(run, step, part) for part in _parts(run)])
    skipped_before = run.guards["student"].skipped
    for player in learning:
        player.begin(rate_factor)
    if student_learns(recipe.objectives, step):
        numbers |= _student_step(run, step, verdict, learning)
    else:
        for part in _parts(run):
            batch, owners = _batch(run, step, part), [player.index for player in learning]
            with torch.no_grad():  # a data-parallel wrapper expects no backward pass then
                run.wrapped(batch, run.target, run.teacher, run.player_networks, make_for=owners)
            _teach(run, batch, step, learning)
    if run.guards["student"].skipped == skipped_before:
        for player in learning:
            numbers |= player.move(partial(verdict.on_player, player))
    return numbers


def _parts(run: Run) -> list[slice]:
    """The rows of the common batch that this process takes, in pieces."""
    accelerator = run.accelerator
    pieces = run.recipe.engine.accumulate
    return rows_of_process(run.recipe.data.batch_size, accelerator.num_processes, accelerator.process_index, pieces)


def _teach(run: Run, batch: Batch, step: int, learning: Sequence[PlayerInTraining]) -> None:
    """Gradients of the players that learn in this step, on a piece of the batch and what objectives made of it."""
    networks = Networks(run.student, run.target, run.teacher, run.player_networks)
    for player in learning:
        player.learn(batch, run.module.made[player.index], networks, step, pieces=run.recipe.engine.accumulate)


def _student_step(
    run: Run, step: int, verdict: Verdict, learning: Sequence[PlayerInTraining]
) -> dict[str, float | Tensor]:
    """One step of the student's optimiser, and the gradients of the players that learn in it."""
    recipe, accelerator, pieces = run.recipe, run.accelerator, run.recipe.engine.accumulate
    run.optimizer.zero_grad()
    numbers: dict[str, float | Tensor] = {}
    for index, part in enumerate(_parts(run)):
        with run.together(last=index + 1 == pieces):
            for name, value in _piece(run, _batch(run, step, part), step, learning).items():
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


def _batch(run: Run, step: int, part: slice) -> Batch:
    """Some rows of a step's common batch."""
    recipe = run.recipe
    total = recipe.data.batch_size
    x0, condition = run.input.take(recipe.data, recipe.seed, step, part)
    layout = torch.channels_last if recipe.engine.channels_last and x0.dim() == 4 else torch.preserve_format
    return draw_batch(
        recipe.objectives_at(step),
        run.student,
        x0.to(memory_format=layout),
        condition,
        total=total,
        part=part,
        condition_dropout=recipe.condition_dropout,
        generator=step_generator(recipe.seed, step),
        step=step,
    )


def _piece(run: Run, batch: Batch, step: int, learning: Sequence[PlayerInTraining]) -> dict[str, float | Tensor]:
    """Forward and backward through one piece of a batch: its gradients are added to the others'. Returns its numbers.

    The adaptive weights are found for each piece from its own gradients, over all processes (as in the official code)."""
    recipe, active = run.recipe, run.module.active(batch)
    names = [loss_names(recipe.objectives)[index] for index in active]
    norms: list[Tensor] = []

    def reduce(gradient: Tensor) -> Tensor:
        gradient = run.accelerator.reduce(gradient, "mean")
        norms.append(gradient.norm())
        return gradient

    losses = run.wrapped(batch, run.target, run.teacher, run.player_networks)
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
    each = getattr(run.teacher, "evaluations", 1)  # two of an autoguided teacher
    numbers["teacher_evaluations_per_image"] = each * sum(
        recipe.objectives[index].teacher_evaluations(batch.draws[index]) for index in active
    )
    _teach(run, batch, step, learning)
    return numbers
