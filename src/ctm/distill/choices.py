"""What `ctm distill` chooses, each with its reason: network, levels, the way to teach, grid, batch, steps, rate, averages."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch

from ctm.data import Images
from ctm.distill.measures import FINE, TeacherWalks
from ctm.distill.network import student_network, two_outputs
from ctm.models import AnyModel

__all__ = ["WAYS", "Choice", "Chosen", "Wishes", "choose", "unlabelled", "wishes_from"]

Settings = dict[str, Any]

WAYS = {
    "matching": "soft matching with score matching, the paper's way (docs/ways.md compares it with the others)",
    "lagrangian": "the jump's end follows the flow's velocity (docs/ways.md)",
    "eulerian": "the jump does not change along the flow (docs/ways.md)",
    "distribution": "soft matching, and the samples' distribution is the teacher's at each level of noise (docs/ways.md)",
}
_BATCHES = (16, 32, 64, 128)
_MANY = 1500  # steps that a run should have before its batch grows: those of the demo's recipe
_MOST = 50_000  # steps: those of CTM's own runs on CIFAR-10
_LONG, _SHORT_ERROR, _LONG_ERROR = 10_000, 0.1, 0.025
_SOLVER_STEPS = 9
_RATE, _HIGHEST_RATE, _LARGE = 4e-4, 3e-3, 10_000_000
_LORA_RATE = 1e-3
_BEFORE, _LONGEST_BEFORE = 8, 500  # steps of score matching alone, as a share of all and at most
_SLOWER, _CLIP = 0.5, 1.0  # for networks whose errors count many times at high noise


@dataclass(frozen=True)
class Wishes:
    """What the user gives; None where it is to be chosen. network: class_path and init_args. minutes: of the whole command."""

    minutes: float | None = None
    steps: int | None = None
    network: Settings | None = None
    lora: int | None = None
    checkpoint_gradients: bool | None = None
    way: str | None = None
    sigma_min: float | None = None
    sigma_max: float | None = None
    grid_points: int | None = None
    solver_steps: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    ema: float | None = None
    target_ema: float | None = None
    guidance: tuple[float, float] | None = None
    precision: str | None = None
    seed: int = 0

    def as_json(self) -> Settings:
        """What was given, by name, as JSON has it."""
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: list(v) if isinstance(v, tuple) else v for name, v in given.items() if v is not None}


@dataclass(frozen=True)
class Choice:
    """A setting of the recipe by its dotted name, the value in words, and why it is that."""

    name: str
    value: str
    why: str

    def line(self) -> str:
        return f"{self.name}: {self.value}; {self.why}"


@dataclass(frozen=True)
class Chosen:
    """settings: of the recipe, in its order. choices: with reasons. seconds: of a step, as measured, None where it was not."""

    settings: Settings
    choices: list[Choice]
    seconds: float | None


def choose(
    teacher: AnyModel,
    data: Settings,
    source: str,
    wishes: Wishes,
    walks: TeacherWalks,
    *,
    seconds_left: float,
    step_seconds: Callable[[Settings], float],
) -> Chosen:
    """The recipe for a teacher, and why.

    data: the settings of its data, without batch_size. source: how the user named the teacher. walks: as measured.
    seconds_left: for training, where no number of steps was given. step_seconds: (settings of a recipe) -> seconds of a step,
    measured; asked where steps are to be chosen.
    Raises ValueError for wishes that do not go together."""
    if wishes.steps is not None and wishes.minutes is not None:
        raise ValueError("--steps and --minutes both say how long to train: give one of them")
    if wishes.way is not None and wishes.way not in WAYS:
        raise ValueError(f"--way must be one of {', '.join(WAYS)}, got {wishes.way!r}")
    maker = _Maker(teacher, data, source, wishes, walks)
    batch, steps, seconds = _length(maker, seconds_left, step_seconds)
    return Chosen(maker.settings(batch, steps), maker.choices(batch, steps, seconds, seconds_left), seconds)


def _length(
    maker: _Maker, seconds_left: float, step_seconds: Callable[[Settings], float]
) -> tuple[int, int, float | None]:
    """(batch size, steps, measured seconds of a step or None)."""
    wishes = maker.wishes
    if wishes.steps is not None:
        return wishes.batch_size or maker.usual_batch, wishes.steps, None
    if wishes.batch_size is not None:
        seconds = step_seconds(maker.settings(wishes.batch_size, _MANY))
        return wishes.batch_size, _steps_in(seconds_left, seconds), seconds
    smallest = step_seconds(maker.settings(_BATCHES[0], _MANY))
    seconds, batch = smallest, _BATCHES[0]
    for larger in _BATCHES[1:]:  # a step of twice the batch takes at most twice as long
        if larger <= maker.usual_batch and seconds_left / (smallest * larger / _BATCHES[0]) >= _MANY:
            batch = larger
    following = [size for size in _BATCHES if batch < size <= maker.usual_batch][:1]
    for size in [batch, *following] if batch > _BATCHES[0] else following:
        measured = step_seconds(maker.settings(size, _MANY))
        if size == batch or seconds_left / measured >= _MANY:
            batch, seconds = size, measured
    return batch, _steps_in(seconds_left, seconds), seconds


def _steps_in(seconds_left: float, seconds: float) -> int:
    return max(20, min(_MOST, int(seconds_left / seconds)))


class _Maker:
    """The settings of a recipe, given its length."""

    def __init__(self, teacher: AnyModel, data: Settings, source: str, wishes: Wishes, walks: TeacherWalks) -> None:
        self.teacher, self.data, self.source, self.wishes, self.walks = teacher, data, source, wishes, walks
        self.network, self.network_why = student_network(teacher, wishes.network, guided=wishes.guidance is not None)
        two = self.network.get("init_args", {}).get("outputs") == 2
        both = two_outputs(teacher) if two else None
        self.two, self.inner = both is not None, getattr(teacher, "inner", "edm") if both is None else both
        self.grows = walks.grows and not self.two
        self.numbers = sum(p.numel() for p in teacher.parameters())
        pictures = len(teacher.shape) == 3
        self.usual_batch = 128 if math.prod(teacher.shape) <= 4096 else 64
        self.convolves = pictures and any(isinstance(m, torch.nn.Conv2d) for m in teacher.modules())

    def tolerance(self, steps: int) -> float:
        return _SHORT_ERROR if steps < _LONG else _LONG_ERROR

    def grid_points(self, steps: int) -> int:
        return self.wishes.grid_points or self.walks.levels(self.tolerance(steps))

    def solver_steps(self, steps: int) -> int:
        return self.wishes.solver_steps or min(self.grid_points(steps) - 1, _SOLVER_STEPS)

    def rate(self, steps: int) -> float:
        if self.wishes.learning_rate is not None:
            return self.wishes.learning_rate
        if self.wishes.lora is not None:
            return _LORA_RATE
        shorter = math.sqrt(_MOST / steps) * min(1.0, math.sqrt(_LARGE / max(self.numbers, 1)))
        slower = _SLOWER if self.grows else 1.0
        return float(f"{min(_RATE * max(1.0, shorter), _HIGHEST_RATE) * slower:.2g}")

    def ema(self, steps: int) -> float:
        own = self.wishes.ema
        return own if own is not None else round(min(max(1 - 10 / steps, 0.5), 0.9999), 5)

    def target_ema(self, steps: int) -> float:
        own = self.wishes.target_ema
        return own if own is not None else round(min(max(1 - 75 / steps, 0.5), 0.999), 5)

    def start(self, steps: int) -> int:
        """Steps of score matching alone, in which a second output that is zero at first learns the picture."""
        return min(steps // _BEFORE, _LONGEST_BEFORE)

    @property
    def way(self) -> str:
        return self.wishes.way or "matching"

    def objectives(self, steps: int) -> list[Settings]:
        matching: Settings = {
            "kind": "soft",
            "grid_points": self.grid_points(steps),
            "max_solver_steps": self.solver_steps(steps),
        }
        if self.wishes.guidance is not None:
            matching["guidance"] = list(self.wishes.guidance)
        if self.two:
            matching["start"] = self.start(steps)
        first = {
            "matching": ("Matching", matching),
            "distribution": ("Matching", matching),
            "lagrangian": ("Lagrangian", {}),
            "eulerian": ("Eulerian", {"warmup": max(1, steps // 3), "normalise": 0.1}),
        }[self.way]
        found: list[Settings] = [{"class_path": f"ctm.objectives.{first[0]}", "init_args": first[1]}]
        if self.way == "distribution":
            found.append({"class_path": "ctm.objectives.DistributionMatching"})
        return [*found, {"class_path": "ctm.objectives.DenoisingScoreMatching"}]

    def engine(self) -> Settings:
        found: Settings = {"channels_last": True} if self.convolves else {}
        if self.grows:
            found["clip_gradient_norm"] = _CLIP
        if self.wishes.precision is not None:
            found["precision"] = self.wishes.precision
        if self.wishes.checkpoint_gradients:
            found["checkpoint_gradients"] = True
        return found

    def settings(self, batch: int, steps: int) -> Settings:
        """The recipe for this batch and so many steps."""
        wishes, teacher = self.wishes, self.teacher
        model: Settings = {
            "sigma_min": wishes.sigma_min or float(teacher.sigma_min),
            "sigma_max": wishes.sigma_max or min(self.walks.sigma_max, float(teacher.sigma_max)),
            "sigma_data": float(teacher.sigma_data),
        }
        if self.inner != "edm":
            model["inner"] = self.inner if isinstance(self.inner, str) else self.inner.as_json()
        engine = self.engine()
        return {
            "data": {**self.data, "batch_size": batch},
            "model": model,
            "network": self.network,
            "teacher": self.source,
            **({"lora": {"rank": wishes.lora}} if wishes.lora is not None else {}),
            "objectives": self.objectives(steps),
            "optimizer": {"class_path": "torch.optim.RAdam", "init_args": {"lr": self.rate(steps)}},
            "target_ema": self.target_ema(steps),
            "ema": self.ema(steps),
            "steps": steps,
            "decay_fraction": 0.3,
            "seed": wishes.seed,
            "log_every": max(1, min(50, steps // 20)),
            "sample_every": max(1, min(1000, steps)),
            "checkpoint_every": max(1, min(500, steps // 10)),
            **({"engine": engine} if engine else {}),
        }

    def choices(self, batch: int, steps: int, seconds: float | None, seconds_left: float) -> list[Choice]:
        """The choices with their reasons."""
        wishes = self.wishes
        model = self.settings(batch, steps)["model"]
        levels = f"{model['sigma_min']:g} to {model['sigma_max']:g}, sigma_data {model['sigma_data']:g}"
        own = wishes.sigma_min is not None or wishes.sigma_max is not None
        found = [
            Choice(
                "network", self._network_words(), self.network_why if wishes.lora is None else _lora_why(wishes.lora)
            ),
            Choice(
                "model",
                levels,
                "as given, within the teacher's" if own else self._levels_why(),
            ),
            Choice("objectives", self.way, _given(wishes.way, WAYS[self.way])),
            *self._grid_choices(steps),
            Choice("data.batch_size", str(batch), _given(wishes.batch_size, self._batch_why(batch, seconds))),
            Choice("steps", f"{steps:,}", self._steps_why(steps, seconds, seconds_left)),
            Choice("optimizer", f"RAdam, learning rate {self.rate(steps):g}", self._rate_why(steps)),
            Choice(
                "ema",
                f"{self.ema(steps):g}",
                _given(wishes.ema, "the published weights average over a tenth of the run"),
            ),
            Choice(
                "target_ema",
                f"{self.target_ema(steps):g}",
                _given(wishes.target_ema, "matching compares with an average over a 75th of the run"),
            ),
            Choice("engine", self._engine_words(), self._engine_why()),
        ]
        if wishes.guidance is not None:
            low, high = wishes.guidance
            found.append(
                Choice("guidance", f"{low:g} to {high:g}", "as given: the scale becomes an input of the student")
            )
        return found

    def _levels_why(self) -> str:
        if self.walks.sigma_max >= self.teacher.sigma_max:
            return "the teacher's noise levels, which it knows"
        return (
            f"the teacher's noise levels without the highest, up to {self.teacher.sigma_max:.4g}: its network predicts the "
            "noise, whose error counts σ times in a sample, and at the highest level left 0.05 nats of a sample are to be seen"
        )

    def _network_words(self) -> str:
        name = str(self.network["class_path"]).rpartition(".")[2]
        kind = self.network.get("init_args", {}).get("kind")
        return f"{name}{f' ({kind})' if kind else ''} for a teacher of {self.numbers:,} numbers"

    def _grid_choices(self, steps: int) -> list[Choice]:
        if self.way not in ("matching", "distribution"):
            return [Choice("grid", "none", "this way draws its levels from the continuum")]
        points, most = self.grid_points(steps), self.solver_steps(steps)
        known = self.walks.errors.get(points)
        measured = (
            ""
            if known is None
            else (
                f"Heun's walk on it is {known:.1%} off a walk of {FINE} steps on {len(self.walks.ends)} noises, and at most "
                f"{self.tolerance(steps):.1%} serves a run of this length"
            )
        )
        evaluations = 2 * (2 * most + 1) / 3
        later = "score matching alone teaches the second output the picture before that, without the teacher's walks"
        return [
            *([Choice("start", f"matching from step {self.start(steps):,} on", later)] if self.two else []),
            Choice("grid_points", str(points), _given(self.wishes.grid_points, measured)),
            Choice(
                "max_solver_steps",
                str(most),
                _given(
                    self.wishes.solver_steps,
                    f"the teacher is asked {evaluations:.0f} times for an image of a step in the mean",
                ),
            ),
        ]

    def _batch_why(self, batch: int, seconds: float | None) -> str:
        if seconds is None:
            return f"as usual for samples of {math.prod(self.teacher.shape):,} numbers"
        return f"the largest with which {_MANY:,} steps fit into the time, or the smallest there is"

    def _steps_why(self, steps: int, seconds: float | None, seconds_left: float) -> str:
        if seconds is None:
            return "as given"
        few = "; these are few: give more --minutes" if steps < _MANY // 3 else ""
        most = f"; more than {_MOST:,} are not taken" if steps == _MOST else ""
        return f"a step takes {seconds:.3g} s here, and {seconds_left:,.0f} s are for training{few}{most}"

    def _rate_why(self, steps: int) -> str:
        if self.wishes.learning_rate is not None:
            return "as given"
        if self.wishes.lora is not None:
            return "adapters start at nothing and take a larger rate than whole weights of this size"
        half = ", and half of that because gradients grow with the noise" if self.grows else ""
        return (
            f"CTM's {_RATE:g} for {_MOST:,} steps, larger for fewer by the root of their ratio, less beyond {_LARGE:,} numbers, "
            f"at most {_HIGHEST_RATE:g}{half}; it falls to 0 over the last 30 % of the steps"
        )

    def _engine_words(self) -> str:
        engine = self.engine()
        return ", ".join(f"{name} {value}" for name, value in engine.items()) or "as usual"

    def _engine_why(self) -> str:
        why = ["channels innermost is what convolutions compute fastest in"] if self.convolves else []
        why += ["gradients are clipped, because the highest noise has by far the largest"] if self.grows else []
        why += ["precision as given"] if self.wishes.precision is not None else []
        why += ["activations are computed again in the backward pass, to save memory"] * bool(
            self.wishes.checkpoint_gradients
        )
        return "; ".join(why) or "full precision, no memory is to be saved"


def _given(wish: object, why: str) -> str:
    return "as given" if wish is not None else why


def _lora_why(rank: int) -> str:
    return f"the teacher's own weights, once in memory, with adapters of rank {rank}"


def unlabelled(teacher: AnyModel, images: Images) -> bool:
    """Whether the labels of the data are to be left out: the teacher knows no classes."""
    return teacher.num_classes == 0 and images.num_classes > 0


def wishes_from(given: Mapping[str, Any]) -> Wishes:
    """The wishes among a command's settings."""
    return Wishes(**{field.name: given[field.name] for field in fields(Wishes) if given.get(field.name) is not None})
