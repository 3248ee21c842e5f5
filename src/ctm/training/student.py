"""Where a student starts: from its teacher's weights, copied by name, or from an earlier stage of its own."""

from __future__ import annotations

import json
from dataclasses import dataclass

from ctm.conditioner import Conditioner
from ctm.models import AnyModel
from ctm.networks import DiffusersNetwork
from ctm.preconditioning import NoiseAndSample, Own, Preconditioning

__all__ = ["Start", "check_student", "check_teacher", "start_from_student", "start_from_teacher"]

_SHOWN = 3


@dataclass(frozen=True)
class Start:
    """What a student took from its teacher, by the names of tensors.

    copied: now the teacher's. new: those the teacher has not. unfit: those it has in another shape, with both shapes in words.
    left: the teacher's that the student has not."""

    copied: list[str]
    new: list[str]
    unfit: list[str]
    left: list[str]

    def line(self) -> str:
        """One line for a person."""
        total = len(self.copied) + len(self.new) + len(self.unfit)
        parts = [f"the student starts from its teacher's weights: {len(self.copied)} of its {total} tensors are copied"]
        own = [name for name in self.new if _students_own(name)]
        others = [name for name in self.new if not _students_own(name)]
        if own:
            parts.append(f"{len(own)} are a student's own layers and new, as they should be ({_first(own)})")
        if others:
            parts.append(f"{len(others)} are unknown to the teacher and start at random ({_first(others)})")
        if self.unfit:
            parts.append(
                f"{len(self.unfit)} have other shapes than the teacher's and start at random ({_first(self.unfit)}): give the "
                "network the teacher's sizes to copy them"
            )
        if self.left:
            parts.append(f"{len(self.left)} of the teacher's have no place in the student ({_first(self.left)})")
        return "; ".join(parts)


def _students_own(name: str) -> bool:
    """Whether a tensor belongs to the level s or to the guidance scale, which a teacher has not and a student needs."""
    return any(part.startswith(("s_", "guidance")) for part in name.split("."))


def _first(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")


def check_teacher(teacher: AnyModel, shape: tuple[int, ...], data: Conditioner) -> None:
    """Raises ValueError where a teacher cannot teach on these data: other image shape, other classes, fields of its condition
    that the data have not or in another shape."""
    if tuple(teacher.shape) != tuple(shape):
        raise ValueError(
            f"the teacher makes samples of shape {tuple(teacher.shape)}, the data are {tuple(shape)}: "
            "set data.size and data.channels to the teacher's, or train a teacher on this data"
        )
    if teacher.num_classes not in (0, data.num_classes):
        raise ValueError(
            f"the teacher knows {teacher.num_classes} classes, the data have {data.num_classes}: train on the teacher's data"
        )
    for name, sides in _fields_of(teacher).items():
        if data.fields.get(name) != sides:
            have = f"the data have it as {list(data.fields[name])}" if name in data.fields else "the data have none"
            raise ValueError(
                f"the teacher is conditioned on {name!r} {list(sides)}, {have}: name its array by --data.condition"
            )


def fields_left_out(teacher: AnyModel, data: Conditioner) -> list[str]:
    """A line for the fields of the data's condition that the teacher does not know: its walks go without them."""
    left = [name for name in data.fields if name not in _fields_of(teacher)]
    return [f"the teacher does not know {', '.join(left)}: it teaches without"] if left else []


def _fields_of(teacher: AnyModel) -> dict[str, tuple[int, ...]]:
    """The fields that a teacher cannot do without being told: the fields of its condition that can be absent."""
    return (getattr(teacher, "conditioner", None) or Conditioner()).given_fields


def start_from_teacher(student: AnyModel, teacher: AnyModel) -> Start:
    """Copy every tensor of the teacher's network that the student's network has under the same name and in the same shape.

    Raises ValueError where there is none, and where the teacher's network predicts something else than the student's."""
    own = student.network.state_dict()
    network = getattr(teacher, "network", None)
    before, now = (getattr(model, "preconditioning", None) for model in (teacher, student))
    widened = isinstance(now, NoiseAndSample) and now.begins_as(before)
    if before != now and not widened and not (isinstance(before, Own | None) and isinstance(now, Own)):
        raise ValueError(
            f"the teacher's network has the inner {_as_json(before)} and this recipe's model {_as_json(now)}, with which its "
            "weights are another function: set model.inner to the teacher's, or start from random weights: --start_from random"
        )
    teachers = {} if network is None else network.state_dict()
    if widened and isinstance(student.network, DiffusersNetwork):
        teachers = student.network.begin_from(teachers)
    fitting = {name: value for name, value in teachers.items() if name in own and own[name].shape == value.shape}
    if not fitting:
        raise ValueError(
            f"nothing of the teacher's network ({type(network).__name__}, {len(teachers)} tensors) fits the student's "
            f"({type(student.network).__name__}, {len(own)} tensors) in name and shape: give the network the teacher's class and "
            "sizes, or start from random weights: --start_from random"
        )
    student.network.load_state_dict(fitting, strict=False)
    unfit = [name for name in own if name in teachers and name not in fitting]
    return Start(
        copied=list(fitting),
        new=[name for name in own if name not in teachers],
        unfit=[f"{name} {tuple(own[name].shape)} for {tuple(teachers[name].shape)}" for name in unfit],
        left=[name for name in teachers if name not in own],
    )


def _as_json(inner: Preconditioning | None) -> str:
    return "unknown" if inner is None else json.dumps(inner.as_json())


def check_student(student: AnyModel, started: AnyModel, name: str) -> None:
    """Raises ValueError where `started`, the model called `name`, is of another kind than the student, or has other scalings."""
    kinds = type(started).__name__, type(student).__name__
    if kinds[0] != kinds[1]:
        raise ValueError(
            f"{name} is a {kinds[0]} and this recipe trains a {kinds[1]}: set model.kind, or name it as the teacher, whose "
            "weights may start another kind of model"
        )
    for setting in ("inner", "outer"):
        before, now = getattr(started, setting, None), getattr(student, setting, None)
        if before != now:
            raise ValueError(
                f"{name} has the {setting} scaling {before!r} and this recipe's model {now!r}, with which its weights are "
                f"another function: set model.{setting} to {before}"
            )


def start_from_student(student: AnyModel, started: AnyModel, name: str) -> None:
    """Copy all weights of the model `started`, which is called `name`, into the student.

    Raises ValueError where the two networks are not the same, naming what differs."""
    weights, own = started.network.state_dict(), student.network.state_dict()
    other = sorted(
        key
        for key in own.keys() | weights.keys()
        if getattr(own.get(key), "shape", 0) != getattr(weights.get(key), "shape", 0)
    )
    if other:
        raise ValueError(
            f"the student cannot start from {name}: {len(other)} tensors differ in name or shape, first {other[0]}. Give the "
            "network of that model (its config.json names it)"
        )
    check_student(student, started, name)
    student.network.load_state_dict(weights)
