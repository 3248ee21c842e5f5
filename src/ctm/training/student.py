"""Starting a student from its teacher's weights, copied by name."""

from __future__ import annotations

from typing import Any

__all__ = ["check_teacher", "start_from_teacher"]


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
