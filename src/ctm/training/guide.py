"""The weaker teacher that guides the teacher of a run (autoguidance, arXiv 2406.02507)."""

from __future__ import annotations

from ctm.data import Dataset
from ctm.models import AnyModel
from ctm.models.autoguided import AutoGuided
from ctm.teachers import load_teacher
from ctm.training.levels import Levels
from ctm.training.stand_in import found_or_none
from ctm.training.student import check_teacher

__all__ = ["guide_of", "guided"]


def guide_of(
    name: str, teacher: AnyModel, images: Dataset, levels: Levels, stand_in: list[str] | None
) -> AnyModel | None:
    """The weaker teacher, None where a dry run does without. Raises ValueError where it cannot guide this teacher."""
    guide = found_or_none(lambda: load_teacher(name), "teacher_guide", "the teacher goes unguided", stand_in)
    if guide is None:
        return None
    check_teacher(guide, images.shape, images.conditioner)
    names = [list(getattr(model, "class_names", None) or []) for model in (teacher, guide)]
    if all(names) and names[0] != names[1]:
        raise ValueError(
            f"the classes of teacher_guide {name} have other names, or another order, than the teacher's: give one of the same "
            "data"
        )
    if guide.sigma_min > levels.sigma_min * (1 + 1e-6) or guide.sigma_max < levels.sigma_max * (1 - 1e-6):
        raise ValueError(
            f"teacher_guide {name} knows noise levels {guide.sigma_min:g} to {guide.sigma_max:g}, and the student learns "
            f"{levels.sigma_min:g} to {levels.sigma_max:g}: give a guide that knows them, or set model.sigma_min and sigma_max"
        )
    return guide


def guided(teacher: AnyModel | None, guide: AnyModel | None, scale: float) -> AnyModel | None:
    """The teacher, guided where it has a guide."""
    if teacher is None or guide is None:
        return teacher
    return AutoGuided(teacher, guide, scale)  # type: ignore[return-value]
