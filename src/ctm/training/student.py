"""Where a student starts: from its teacher's weights, copied by name, or from an earlier stage of its own."""

from __future__ import annotations

from typing import Any

from ctm.models import load_model

__all__ = ["check_teacher", "start_from_student", "start_from_teacher"]


def check_teacher(teacher: Any, student: Any) -> None:
    """Raises ValueError where a teacher cannot teach this student: other image shape, other classes, other noise range."""
    if tuple(teacher.shape) != tuple(student.shape):
        raise ValueError(
            f"the teacher makes samples of shape {tuple(teacher.shape)}, the data are {tuple(student.shape)}: "
            "set data.size and data.channels to the teacher's, or train a teacher on this data"
        )
    if teacher.num_classes not in (0, student.num_classes):
        raise ValueError(
            f"the teacher knows {teacher.num_classes} classes, the data have {student.num_classes}: train on the teacher's data"
        )


def start_from_teacher(student: Any, teacher: Any) -> list[str]:
    """Copy every tensor of the teacher's network that the student's network has under the same name and shape.

    Returns the names the teacher did not have (the student's own layers: the s branch). Copies nothing and returns all
    names where the two networks are of different kinds."""
    own, given = student.network.state_dict(), teacher.network.state_dict()
    fitting = {name: value for name, value in given.items() if name in own and own[name].shape == value.shape}
    if len(fitting) < len(given):
        return list(own)
    student.network.load_state_dict(fitting, strict=False)
    return [name for name in own if name not in given]


def start_from_student(student: Any, source: str) -> Any:
    """Copy all weights of a model (directory, run directory or hub id) into the student. Returns that model.

    Raises ValueError where the two networks are not the same, naming what differs."""
    model = load_model(source)
    given, own = model.network.state_dict(), student.network.state_dict()
    other = sorted(
        name
        for name in own.keys() | given.keys()
        if getattr(own.get(name), "shape", 0) != getattr(given.get(name), "shape", 0)
    )
    if other:
        raise ValueError(
            f"the student cannot start from {source}: {len(other)} tensors differ in name or shape, first {other[0]}. Give the "
            "network of that model (its config.json names it)"
        )
    student.network.load_state_dict(given)
    return model
