"""A recipe put together: data, networks, optimiser and averages of one process, in place on its device."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from ctm.data import Dataset, load_dataset
from ctm.data.latents import holds_latents, load_latents
from ctm.models import AnyModel, load_model
from ctm.models.files import check_model
from ctm.networks.adapters import OwnTensors, with_merged_network
from ctm.objectives import Networks
from ctm.objectives.player import players_of
from ctm.teachers import load_teacher
from ctm.teachers.load import check_source
from ctm.training.adapting import adapt, check_lora
from ctm.training.augmenting import check_augment, check_flips
from ctm.training.classes import in_classes_of, name_classes, without_idle_labels
from ctm.training.ema import Average, frozen_copy
from ctm.training.engine import (
    ScaledOptimizer,
    compile_networks,
    fitting_optimizer,
    set_checkpointing,
    set_layout,
    set_precision,
)
from ctm.training.guard import StepGuard
from ctm.training.guide import guide_of, guided
from ctm.training.input import Ahead
from ctm.training.latents import pipeline_of_student
from ctm.training.levels import Levels, measured_deviation, settle_levels
from ctm.training.players import PlayerInTraining, players_in_training
from ctm.training.recipe import Recipe, built_for
from ctm.training.scaling import in_scaling_of
from ctm.training.sharding import WholeModule, WholeOptimizer, shard_networks
from ctm.training.stand_in import found_or_none, with_usable_features
from ctm.training.step import LossModule, last_layer, rows_of_process
from ctm.training.student import check_teacher, fields_left_out, start_from_student, start_from_teacher
from ctm.training.trackers import check_trackers
from ctm.training.unused import fit_to_processes
from ctm.training.verdict import step_guards
from ctm.training.walk_stores import in_passing, open_walks

__all__ = ["Run", "check_sources", "load_data", "prepare"]

_COPY = "a copy of the untrained student stands in for it"


@dataclass
class Beginning:
    """The student before its first step, and where it comes from.

    images: with their classes numbered as the models that it starts from number them. levels: of its noise, and the deviation
    of its data. lines: what a person is told of all this. sources: by teacher, teacher_guide and student the name a model
    was given by, and the model."""

    images: Dataset
    student: AnyModel
    teacher: AnyModel | None
    guide: AnyModel | None
    levels: Levels
    lines: list[str]
    sources: dict[str, tuple[str, AnyModel]]


@dataclass
class Run:
    """What the loop works on."""

    recipe: Recipe
    accelerator: Accelerator
    images: Dataset
    module: LossModule
    wrapped: Any  # the module, or accelerate's wrapper around it
    averages: list[AnyModel]
    target: AnyModel | None
    teacher: AnyModel | None
    plain: AnyModel | None  # where the weights are sharded, a whole model in the main process, else None
    sharded: bool
    guards: dict[str, StepGuard]
    begun: Beginning
    players: dict[str, PlayerInTraining] = field(default_factory=dict)
    scratch: list[Any] = field(default_factory=list)  # a dry run's temporary folders
    optimizer: ScaledOptimizer = field(init=False)  # there once all is in place
    input: Ahead = field(init=False)

    def __post_init__(self) -> None:
        self.input = Ahead(self.images, self.accelerator.device, self.recipe.steps)

    @property
    def student(self) -> AnyModel:
        return self.module.student

    @property
    def published(self) -> AnyModel:
        return self.averages[0]

    def modules(self) -> dict[str, torch.nn.Module]:
        """What a checkpoint holds."""
        kept: dict[str, torch.nn.Module | None] = {
            "student": self.student,
            "ema": self.published,
            "target": self.target,
        }
        kept |= {f"ema-{profile.name}": model for profile, model in self.others()}
        kept |= self.player_networks
        return {name: module for name, module in kept.items() if module is not None}

    @property
    def optimizers(self) -> dict[str, ScaledOptimizer]:
        """What a checkpoint holds of optimisers."""
        return {"student": self.optimizer} | {name: player.optimizer for name, player in self.players.items()}

    @property
    def player_networks(self) -> dict[str, torch.nn.Module]:
        """The networks of players by name."""
        return {name: player.network for name, player in self.players.items()}

    @property
    def skipping(self) -> bool:
        """Whether the last step of the student or of a player was skipped."""
        return any(guard.in_a_row > 0 for guard in self.guards.values())

    def others(self) -> list[tuple[Average, AnyModel]]:
        """The averages besides the published one."""
        return list(zip(self.recipe.averages, self.averages, strict=True))[1:]

    def parts(self, *, gather: bool) -> tuple[dict[str, Any], dict[str, Any]]:
        """What a checkpoint holds: modules and optimisers. All processes call this at the same moment.

        gather: bring sharded tensors together, for saving."""
        if self.recipe.lora is not None:
            return {name: OwnTensors(module) for name, module in self.modules().items()}, self.optimizers
        if not self.sharded:
            return dict(self.modules()), self.optimizers
        modules = {name: WholeModule(module, gather=gather) for name, module in self.modules().items()}
        return modules, {name: WholeOptimizer(held, gather=gather) for name, held in self.optimizers.items()}

    def whole_averages(self) -> dict[str, AnyModel]:
        """The averages by the names of their directories, to sample from and publish in the main process. All processes call
        this at the same moment."""
        names = ["model", *(f"model-{profile.name}" for profile, _ in self.others())]
        models = self.averages
        if self.recipe.lora is not None:
            models = [with_merged_network(average) for average in models]
        if self.sharded:
            states = [WholeModule(average, gather=True).state_dict() for average in models]
            models = [] if self.plain is None else [frozen_copy(self.plain) for _ in states]
            for model, state in zip(models, states, strict=bool(models)):
                model.load_state_dict(state)
        return dict(zip(names, models, strict=bool(models)))

    def together(self, last: bool) -> AbstractContextManager[object]:
        """Gradients of processes are averaged in the backward pass within, for the last piece of a batch only."""
        if self.sharded:
            network: Any = self.student.network  # an FSDPModule now
            network.set_requires_gradient_sync(last)
            return nullcontext()
        return nullcontext() if last else self.accelerator.no_sync(self.wrapped)


def check_sources(recipe: Recipe) -> None:
    """Return if the teacher and the student that a recipe names, or needs, are there. It takes no time: `train` asks before it
    reads the data, which can take an hour. Raises ValueError and FileNotFoundError with a sentence."""
    if _needs_teacher(recipe) and recipe.teacher is None:
        raise ValueError("this recipe matches a teacher's trajectory but names none: give --teacher MODEL")
    checks: list[tuple[str, str | None, Callable[[str], None]]] = [
        ("teacher", recipe.teacher, check_source),
        ("student", recipe.student, check_model),
    ]
    for what, name, check in checks:
        if name is not None:
            found_or_none(partial(check, name), what, "", None)


def _needs_teacher(recipe: Recipe) -> bool:
    return any(objective.needs_teacher for objective in recipe.objectives)


def load_data(recipe: Recipe) -> Dataset:
    """The data that a recipe names. Raises ValueError and FileNotFoundError as `ctm.data.load_dataset`."""
    data = recipe.data
    columns: dict[str, Any] = {"image": data.image, "label": data.label, "condition": data.condition}
    columns |= {"max_gb": data.max_gb, "scaling": data.scaling}
    if holds_latents(Path(data.name)):  # as ctm latents and ctm distill keep them
        columns |= {"size": data.size, "channels": data.channels, "split": data.split}
        images: Dataset = load_latents(Path(data.name), columns)
    else:
        images = load_dataset(data.name, data.size, data.channels, data.split, **columns)
    if data.unlabelled:
        images = images.without_labels()
    check_flips(data, images)
    return images


def prepare(recipe: Recipe, accelerator: Accelerator, images: Dataset, *, stand_in: list[str] | None = None) -> Run:
    """Networks, optimiser and data, in place on the device. stand_in: for a dry run, which takes other things in place of those
    that are not on this machine, and a copy of the student for a teacher that is not named; gets a line for each. Raises
    ValueError for settings that do not fit each other."""
    rows_of_process(recipe.data.batch_size, accelerator.num_processes, 0, recipe.engine.accumulate)
    check_trackers(recipe.trackers)
    if stand_in is None:
        check_sources(recipe)
    recipe, scratch = (recipe, []) if stand_in is None else in_passing(recipe)
    recipe = with_usable_features(recipe, stand_in)
    players_of(recipe.objectives)  # what cannot be is said before anything is read
    _check_derivatives(recipe)
    check_lora(recipe)
    begun = _beginning(recipe, images, stand_in)
    _check_dropout(recipe, begun.images)
    check_augment(recipe, begun.student)
    student, teacher = begun.student, guided(begun.teacher, begun.guide, recipe.teacher_guidance)
    for objective in recipe.objectives:
        objective.check(student, teacher)
    if teacher is None and _needs_teacher(recipe):
        teacher = frozen_copy(student)
        assert stand_in is not None
        if recipe.teacher is None:
            stand_in.append(f"teacher: none given; {_COPY}")
    if recipe.lora is not None:
        begun.lines.append(adapt(recipe.lora, student, begun.teacher or teacher))
    student = student.to(accelerator.device)
    teacher = teacher.to(accelerator.device) if teacher is not None else None
    if recipe.engine.checkpoint_gradients:  # before the copies, of which the target passes gradients on
        set_checkpointing(student.network)
    if recipe.engine.channels_last:
        set_layout([student] if teacher is None else [student, teacher])
    needs_target = any(objective.needs_target for objective in recipe.objectives)
    sharded = recipe.engine.sharding == "fsdp2" and accelerator.num_processes > 1
    module = LossModule(student, recipe.objectives, sharded=sharded)
    averages = [frozen_copy(student) for _ in recipe.averages]
    target = frozen_copy(student) if needs_target else None
    working = (student, target, teacher)
    set_precision((*working, begun.teacher, begun.guide), recipe.engine.precision)
    players = _players(recipe, Networks(*working), accelerator, begun.lines)
    plain = frozen_copy(student).cpu() if sharded and accelerator.is_main_process else None
    run = Run(
        recipe=recipe,
        accelerator=accelerator,
        images=begun.images,
        module=module,
        wrapped=module,
        averages=averages,
        target=target,
        teacher=teacher,
        plain=plain,
        sharded=sharded,
        guards=step_guards(recipe, players),
        players=players,
        begun=begun,
        scratch=scratch,
    )
    begun.lines += open_walks(run)
    _put_in_place(run)
    return run


def _check_derivatives(recipe: Recipe) -> None:
    """Raises ValueError where networks are to be compiled, or computed again in the backward pass, of which derivatives are taken
    that do not go with it."""
    names = sorted({type(objective).__name__ for objective in recipe.objectives if objective.forward_mode})
    if recipe.engine.checkpoint_gradients and names:
        raise ValueError(
            f"engine.checkpoint_gradients does not go with {', '.join(names)}, which takes forward-mode derivatives: blocks that "
            "are computed again have none. Leave it out"
        )
    if recipe.engine.compile is not None and names:
        raise ValueError(
            f"engine.compile does not go with {', '.join(names)}: torch.compile leaves a network uncompiled where forward-mode "
            "derivatives are taken of it. Leave engine.compile unset"
        )


def _check_dropout(recipe: Recipe, images: Dataset) -> None:
    """Raises ValueError where `condition_dropout` names what the data's condition does not have."""
    if not isinstance(recipe.condition_dropout, dict):
        return
    known = images.conditioner.may_be_absent
    unknown = [name for name in recipe.condition_dropout if name not in known]
    if unknown:
        there = ", ".join(known) or "nothing"
        raise ValueError(
            f"condition_dropout names {unknown[0]!r}, and the condition of {images.name} is {there}: give shares for these "
            "names, or one share for all"
        )


def _players(
    recipe: Recipe, networks: Networks, accelerator: Accelerator, lines: list[str]
) -> dict[str, PlayerInTraining]:
    """The players of the recipe's objectives. Raises ValueError where the engine cannot train them."""
    owned = players_of(recipe.objectives)
    if owned and recipe.engine.sharding == "fsdp2" and accelerator.num_processes > 1:
        owners = ", ".join(type(recipe.objectives[index]).__name__ for index in owned)
        raise ValueError(
            f"engine.sharding fsdp2 does not go with {owners}, which trains a network of its own (a player): players stay whole "
            "in each process, and that is not built beside divided weights. Set engine.sharding to none"
        )
    own = {"discriminator": recipe.discriminator_optimizer}
    if recipe.discriminator_optimizer is not None and "discriminator" not in {p.name for p in owned.values()}:
        lines.append("discriminator_optimizer is not used: no objective trains a discriminator")
    return players_in_training(recipe.objectives, networks, accelerator, recipe.engine, own)


def _put_in_place(run: Run) -> None:
    """Compile the networks, divide them or wrap them for several processes, and make the student's optimiser."""
    recipe, accelerator, student, target = run.recipe, run.accelerator, run.student, run.target
    parallel = accelerator.num_processes > 1 and not run.sharded
    if parallel:
        run.begun.lines += fit_to_processes(run)
    if recipe.engine.compile is not None:
        models = (student, target, run.teacher, run.begun.guide, *run.player_networks.values())
        compile_networks(models, recipe.engine.compile, eager=run.module.last_layer)
    if run.sharded:
        divided = [student, *run.averages, *([] if target is None else [target])]
        shard_networks(divided, [last_layer(model.network) for model in divided], accelerator.device)
        optimizer = accelerator.prepare(fitting_optimizer(recipe.optimizer(student.parameters())))
    else:
        run.wrapped, optimizer = accelerator.prepare(run.module, fitting_optimizer(recipe.optimizer(_trained(run))))
    run.optimizer = ScaledOptimizer(optimizer, accelerator.device, recipe.engine)


def _trained(run: Run) -> Iterable[torch.nn.Parameter]:
    """The student's parameters that learn: all, or with adapters those that are its own."""
    if run.recipe.lora is None:
        return run.student.parameters()
    return [parameter for parameter in run.student.parameters() if parameter.requires_grad]


def _beginning(recipe: Recipe, images: Dataset, stand_in: list[str] | None) -> Beginning:
    """The student before its first step, its teacher, and how it comes to its weights and levels."""
    images, left_out = without_idle_labels(recipe.network, images)
    torch.manual_seed(recipe.seed)
    network, made_for = built_for(recipe.network, images.shape, images.conditioner), images.num_classes
    teacher = started = None
    sources: dict[str, tuple[str, AnyModel]] = {}
    if recipe.teacher is not None:
        name = recipe.teacher
        teacher = found_or_none(lambda: _teacher(name, images), "teacher", _COPY, stand_in)
    if teacher is not None:
        images = in_classes_of(teacher, "the teacher", images)
        check_teacher(teacher, images.shape, images.conditioner)
        sources["teacher"] = str(recipe.teacher), teacher
    if recipe.student is not None:
        name = recipe.student
        started = found_or_none(lambda: load_model(name), "student", "random weights stand in for its", stand_in)
    if started is not None:
        settled = bool(teacher is not None and getattr(teacher, "class_names", None))
        images = in_classes_of(started, "the model to start from", images, settled=settled)
        sources["student"] = str(recipe.student), started
    if images.num_classes != made_for:  # an empty class of the data that the teacher does not know is gone
        torch.manual_seed(recipe.seed)
        network = built_for(recipe.network, images.shape, images.conditioner)
    images, scaled = in_scaling_of(teacher if started is None else started, images, recipe.data.scaling)
    copies = recipe.start_from == "teacher" and started is None
    levels, lines = settle_levels(recipe.model, images, teacher=teacher, student=started, copies=copies)
    settings = dataclasses.replace(recipe.model, **dataclasses.asdict(levels))
    guide = None
    if recipe.teacher_guide is not None and teacher is not None:
        guide = guide_of(recipe.teacher_guide, teacher, images, levels, stand_in)
        sources |= {} if guide is None else {"teacher_guide": (recipe.teacher_guide, guide)}
    student = settings.build(lambda *_, **__: network, images.shape, images.conditioner)
    lines += left_out + scaled + name_classes(student, images)
    student.scaling = images.scaling
    student.pipeline, told = pipeline_of_student((started, teacher), images)
    lines += told
    lines += [] if teacher is None else fields_left_out(teacher, images.conditioner)
    if started is not None:
        start_from_student(student, started, str(recipe.student))
        lines.append(f"the student starts from the weights of {recipe.student}")
    elif teacher is not None and copies:
        lines.append(start_from_teacher(student, teacher).line())
    elif teacher is not None:
        lines.append("the student starts from random weights (start_from)")
    return Beginning(images, student, teacher, guide, levels, lines, sources)


def _teacher(name: str, images: Dataset) -> AnyModel:
    """The teacher of that name. One of diffusers that does not say the deviation of its data gets that of these."""
    return load_teacher(
        name,
        sigma_data=lambda shape: (measured_deviation(images)[0], "measured, the standard deviation of the run's data"),
    )
