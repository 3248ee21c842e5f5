"""A recipe: everything that decides what a training run computes, as typed settings read from YAML."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from typing import Any, Literal

import torch

from ctm.arguments import as_number, whole_number, words_for
from ctm.conditioner import Conditioner
from ctm.models import ConsistencyModel, DiffusionModel, TrajectoryModel
from ctm.networks.description import build
from ctm.objectives import Objective
from ctm.parametrization import Inner, Outer
from ctm.scaling import Rule
from ctm.training.ema import Average, Decay
from ctm.training.engine import EngineSettings
from ctm.training.schedules import Schedule
from ctm.training.self_evaluation import EvaluationSettings
from ctm.training.trackers import Tracker

__all__ = [
    "OLDER_NAMES",
    "DataSettings",
    "LoraSettings",
    "ModelSettings",
    "NetworkBuilder",
    "NetworkDescription",
    "Recipe",
    "check_finite",
]

NetworkBuilder = Callable[[Sequence[int], int], torch.nn.Module]
OLDER_NAMES = {"label_dropout": "condition_dropout"}


@dataclass(kw_only=True)
class DataSettings:
    """What to train on.

    Args:
        name: digits, mnist5k, fashion-mnist, the path of an image folder or .zip, of a file of arrays (.npz, .npy, .safetensors)
            or of a .parquet file, or a hub id.
        size: side of square images, or [height, width]; pictures are resized and centre-cropped. Unset: the set's own size.
        channels: 1 (grey) or 3 (colour) converts; unset: colour if any picture is in colour.
        split: train or test, where the set has both; unset: train.
        batch_size: images in a step, over all processes together.
        image: name of the array or column (.parquet, hub) of images or values; unset: the known names are looked for.
        label: name of the array or column of labels: whole numbers, −1 for none, or texts; unset: as for image.
        condition: names of the arrays in a file of arrays that are fields of the condition, (N, …) each.
        unlabelled: leaves the labels out, as for a teacher that knows no classes.
        flip: mirrors each image of a batch left to right with probability 1/2, from (seed, step, row) alone.
        augment: EDM's geometric augmentation, for teachers: each kind of change is done to a picture with this probability, and
            nine labels tell the network, whose augment_dim must be 9. EDM has 0.12 for CIFAR-10. 0: none.
        max_gb: most memory that an .npz or .parquet file, or a set at another size, may take, in 10⁹ bytes; unset: 1, or ten
            times the file's size.
        scaling: how values that are no pictures become what the model learns, each channel by itself: standard (mean 0,
            deviation 0.5), range (to [-1, 1]), bytes (uint8 to [-1, 1]) or none; unset: bytes for uint8, else standard, and
            the teacher's where there is one. It is kept with the model and undone in its samples.
    """

    name: str
    size: int | list[int] | None = None
    channels: int | None = None
    split: str | None = None
    batch_size: int = 128
    image: str | None = None
    label: str | None = None
    condition: list[str] | None = None
    unlabelled: bool = False
    flip: bool = False
    augment: float = 0.0
    max_gb: float | None = None
    scaling: Rule | None = None


@dataclass(kw_only=True)
class ModelSettings:
    """The model around the network.

    Args:
        kind: trajectory (a CTM), diffusion (a teacher, which cannot jump) or consistency (jumps to sigma_min only).
        sigma_min: lowest noise level; unset: the level of the starting student or the teacher, else 0.002.
        sigma_max: highest noise level; unset: likewise, else 80.
        sigma_data: standard deviation of the data that the scalings assume; unset: as the starting student or the teacher has it,
            else measured.
        inner: scaling of g in a CTM: edm, cm or no; or, for a network that predicts something else, its preconditioning as
            config.json has it, such as {prediction: flow, time_scale: 1000}. A diffusion model takes the latter too.
        outer: form of the jump in a CTM.
    """

    kind: Literal["trajectory", "diffusion", "consistency"] = "trajectory"
    sigma_min: float | None = None
    sigma_max: float | None = None
    sigma_data: float | None = None
    inner: Inner | dict[str, Any] = "edm"
    outer: Outer = "euler"

    def build(
        self, network: NetworkBuilder, shape: Sequence[int], conditioner: Conditioner
    ) -> TrajectoryModel | DiffusionModel | ConsistencyModel:
        """The model around a network made for this data, conditioned on what the data have. Levels that are unset are the model's
        own defaults."""
        settings: dict[str, Any] = {name: value for name, value in asdict(self).items() if value is not None}
        of_data: dict[str, Any] = {"shape": shape, "num_classes": conditioner.num_classes}
        of_data |= {"conditioner": conditioner} if conditioner.fields else {}
        kind, built = settings.pop("kind"), built_for(network, shape, conditioner)
        if kind == "trajectory":
            return TrajectoryModel(built, **of_data, **settings)
        levels = {name: value for name, value in settings.items() if name.startswith("sigma")}
        if kind == "consistency":
            return ConsistencyModel(built, **of_data, **levels)
        inner = {} if isinstance(settings["inner"], str) else {"inner": settings["inner"]}
        return DiffusionModel(built, **of_data, **levels, **inner)


def built_for(network: NetworkBuilder, shape: Sequence[int], conditioner: Conditioner) -> torch.nn.Module:
    """The network for data of this shape and condition: network(shape, num_classes), with the fields as arrays= where there are
    any."""
    arrays = {name: list(sides) for name, sides in conditioner.fields.items()}
    build_it: Callable[..., torch.nn.Module] = network
    return build_it(shape, conditioner.num_classes, **({"arrays": arrays} if arrays else {}))


@dataclass(kw_only=True)
class LoraSettings:
    """Adapters on the teacher's weights, in place of weights of the student's own.

    Args:
        rank: of each adapter.
        alpha: adapters are scaled by alpha/rank; unset: 1.
    """

    rank: int = 16
    alpha: float | None = None

    def __post_init__(self) -> None:
        rank = whole_number(self.rank)
        if rank is None or rank < 1:
            raise ValueError(f"lora.rank must be at least 1, a whole number, got {words_for(self.rank)}")
        if self.alpha is not None:
            as_number(self.alpha, "lora.alpha", 0, above=True, why="unset, adapters are not scaled")


@dataclass(frozen=True)
class NetworkDescription:
    """A network by class_path and init_args; called with the data's shape, number of classes and fields of the condition, it
    makes one that a model's config.json can describe."""

    class_path: str
    init_args: dict[str, Any] = field(default_factory=dict)

    def __call__(
        self, shape: Sequence[int], num_classes: int, arrays: dict[str, list[int]] | None = None
    ) -> torch.nn.Module:
        own = {name: value for name, value in self.init_args.items() if name != "arrays" or value is not None}
        fields = {"arrays": arrays} if arrays else {}
        arguments = {"shape": list(shape), "num_classes": num_classes, **fields, **own}
        return build({"class_path": self.class_path, "init_args": arguments})


def check_finite(value: object, name: str = "") -> None:
    """Raises ValueError, naming the setting, where a number in it is NaN or infinite: in a dataclass, mapping or list."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number, got {value}")
    inner: Iterable[tuple[Any, Any]] = ()
    if is_dataclass(value) and not isinstance(value, type):
        inner = [(each.name, getattr(value, each.name)) for each in fields(value)]
    elif isinstance(value, dict):
        inner = value.items()
    elif isinstance(value, list | tuple):
        inner = enumerate(value)
    for key, each in inner:
        check_finite(each, f"{name}.{key}" if name else str(key))


@dataclass(kw_only=True)
class Recipe:
    """A training run.

    Args:
        data: what to train on.
        network: class_path and init_args of the network; shape, num_classes and arrays are filled in from the data.
        model: the model around the network.
        objectives: the losses; the first is the reference to which the others are balanced.
        optimizer: class_path and init_args of a torch.optim optimiser.
        discriminator_optimizer: the discriminator's optimiser, where an objective is Adversarial; unset: RAdam with learning rate
            2e-3 and betas 0.5 and 0.9. Its learning rate stays.
        teacher: model directory, run directory or hub id of the teacher; the student starts from its weights.
        teacher_guide: model directory, run directory or hub id of a weaker teacher, by which the teacher is guided (autoguidance,
            arXiv 2406.02507). An evaluation of the teacher then is two.
        teacher_guidance: the scale w of that, in D_guide + w·(D_teacher − D_guide); 1 or more.
        student: model directory, run directory or hub id of a model to start from instead: a further stage of training.
        start_from: teacher: the student's network gets every tensor of the teacher's that fits it by name and shape, and there
            must be one; random: it gets none. Without a teacher, or with `student`, it decides nothing.
        lora: the student is its teacher's network with adapters, whose weights are in memory once for teacher, student, target
            and averages; checkpoints hold what is trained alone. Unset: the student has weights of its own.
        adaptive_balance: whether the objectives are scaled by the ratio of gradients at the last layer.
        loss_factors: a constant factor for each objective besides; unset: 1.
        steps: optimiser steps of the whole run.
        target_ema: decay of the target network, the EMA that matching compares with.
        schedule: the target's decay and the matching grid in each step, instead of target_ema and grid_points:
            ctm.training.Progressive or ctm.training.Doubling.
        ema: decay of the published weights, lowered to (1 + n)/(10 + n) in the first steps n; or a list of averages
            (ctm.training.Decay, ctm.training.PowerFunction), the first published as model/, the others as model-NAME/.
        condition_dropout: share of samples whose condition (labels and all fields) is left out; or a share for each name, such
            as {labels: 0.1, half: 0.2}, where each is left out by itself and a name that is not given never is.
        label_dropout: the older name of condition_dropout, accepted for one release.
        warmup_steps: the learning rate rises linearly over these first steps; a player's too, but not the discriminator's.
        decay_fraction: share of the steps, at the end, over which the learning rates fall linearly to 0.
        seed: of every random number in the run.
        log_every: steps between lines of metrics.jsonl.
        sample_every: steps between sample grids.
        sample_minutes: minutes between sample grids besides, the first after a quarter of that; null: by steps alone.
        checkpoint_every: steps between checkpoints.
        keep_checkpoints: how many of the newest checkpoints stay.
        skip_limit: training stops after this many steps in a row were skipped, because a loss or gradient was not finite or
            the gradient was a spike.
        spike_factor: a gradient norm above this multiple of its running median is a spike; null: none is.
        evaluation: how often, and how, the run evaluates itself and keeps the best weights as best/; unset: not at all.
        trackers: wandb, trackio or both; they get the numbers that metrics.jsonl and TensorBoard get.
        license: identifier of a licence for the model's card, such as mit or cc-by-4.0; unset: the card names none.
        engine: how to compute: precision, pieces of a batch, clipping, layout, compilation.
    """

    data: DataSettings
    network: NetworkBuilder
    objectives: list[Objective]
    optimizer: Callable[[Iterable[torch.nn.Parameter]], torch.optim.Optimizer]
    model: ModelSettings = field(default_factory=ModelSettings)
    discriminator_optimizer: Callable[[Iterable[torch.nn.Parameter]], torch.optim.Optimizer] | None = None
    teacher: str | None = None
    teacher_guide: str | None = None
    teacher_guidance: float = 2.0
    student: str | None = None
    start_from: Literal["teacher", "random"] = "teacher"
    lora: LoraSettings | None = None
    adaptive_balance: bool = True
    loss_factors: list[float] | None = None
    steps: int = 10_000
    target_ema: float = 0.999
    schedule: Schedule | None = None
    ema: float | list[Average] = 0.999
    condition_dropout: float | dict[str, float] = 0.1
    label_dropout: float | None = None
    warmup_steps: int = 0
    decay_fraction: float = 0.0
    seed: int = 0
    log_every: int = 50
    sample_every: int = 1000
    sample_minutes: float | None = 2.0
    checkpoint_every: int = 1000
    keep_checkpoints: int = 2
    skip_limit: int = 10
    spike_factor: float | None = 30.0
    evaluation: EvaluationSettings | None = None
    trackers: list[Tracker] = field(default_factory=list)
    license: str | None = None
    engine: EngineSettings = field(default_factory=EngineSettings)

    def __post_init__(self) -> None:
        for older, name in OLDER_NAMES.items():
            if getattr(self, older) is not None:
                setattr(self, name, getattr(self, older))
                setattr(self, older, None)
        check_finite(self)
        for name, low in (
            ("steps", 1),
            ("log_every", 1),
            ("sample_every", 1),
            ("checkpoint_every", 1),
            ("keep_checkpoints", 1),
            ("skip_limit", 1),
            ("warmup_steps", 0),
        ):
            if getattr(self, name) < low:
                raise ValueError(f"{name} must be at least {low}, got {getattr(self, name)}")
        names = [average.name for average in self.averages]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"ema must be a decay or a list of different averages, got {', '.join(names) or 'none'}")
        dropout = self.condition_dropout
        shares = {"target_ema": self.target_ema, "decay_fraction": self.decay_fraction}
        if isinstance(dropout, dict):
            shares |= {f"condition_dropout.{name}": share for name, share in dropout.items()}
        else:
            shares["condition_dropout"] = dropout
        for name, share in shares.items():
            if not 0 <= share <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {share}")
        if self.sample_minutes is not None and not self.sample_minutes > 0:
            raise ValueError(f"sample_minutes must be above 0, or null for none, got {self.sample_minutes}")
        if self.spike_factor is not None and self.spike_factor <= 1:
            raise ValueError(f"spike_factor must be above 1, or null for none, got {self.spike_factor}")
        if self.teacher_guidance < 1:
            raise ValueError(f"teacher_guidance must be at least 1, the teacher itself, got {self.teacher_guidance}")
        if self.teacher_guide is not None and self.teacher is None:
            raise ValueError("teacher_guide guides a teacher, and there is none: give --teacher MODEL too")
        if self.data.batch_size < 1:
            raise ValueError(f"data.batch_size must be at least 1, got {self.data.batch_size}")
        if self.loss_factors is not None and len(self.loss_factors) != len(self.objectives):
            raise ValueError(
                f"loss_factors must be {len(self.objectives)}, one for each objective, got {self.loss_factors}"
            )
        if not self.objectives:
            raise ValueError("a recipe needs at least one objective")
        self.objectives_at(0)  # refuses a schedule of the grid for an objective that has none

    @property
    def averages(self) -> list[Average]:
        """The averages of the weights; the first is the published one."""
        return self.ema if isinstance(self.ema, list) else [Decay(self.ema)]

    def target_decay(self, step: int) -> float:
        """The decay of the target network in step `step` (from 0)."""
        return self.target_ema if self.schedule is None else self.schedule(step, self.steps)[0]

    def objectives_at(self, step: int) -> list[Objective]:
        """The objectives on the grid of step `step` (from 0)."""
        if self.schedule is None:
            return self.objectives
        points = self.schedule(step, self.steps)[1]
        return [objective.on_grid(points) for objective in self.objectives]

    def learning_rate_factor(self, step: int) -> float:
        """The multiple of the optimiser's learning rate in step `step` (from 0)."""
        rise = (step + 1) / self.warmup_steps if step < self.warmup_steps else 1.0
        tail = self.decay_fraction * self.steps
        fall = (self.steps - step) / tail if tail > 0 else 1.0
        return min(rise, fall, 1.0)
