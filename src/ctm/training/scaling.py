"""The scaling of a run's data: the one that its teacher, or the model it starts from, was made with."""

from __future__ import annotations

from ctm.data import Dataset, Values
from ctm.scaling import Rule, Scaling

__all__ = ["in_scaling_of"]


def in_scaling_of(model: object | None, data: Dataset, stated: Rule | None) -> tuple[Dataset, list[str]]:
    """The data under the scaling that the model keeps, and a line that says how they are scaled; as they are where there is no
    model, or where they are pictures.

    model: the teacher, or the model that the student starts from. stated: the rule that the recipe names. A model that keeps no
    scaling has learned numbers as they are, and uint8 as [-1, 1]. Raises ValueError for a model that was made by another rule
    than the stated one, and for pictures where it learned values of a stated scale."""
    kept: Scaling | None = getattr(model, "scaling", None)
    if not isinstance(data, Values):
        if kept is not None:
            raise ValueError(
                f"the model to learn from was made on values that are no pictures ({kept.words()}), and {data.name} is pictures: "
                "give data of its kind"
            )
        return data, []
    if model is None:
        return data, [_line(data, data.scaled)]
    if kept is None:
        kept = data.scaled if data.scaled.rule == "bytes" else Scaling("none")
    if stated is not None and stated != kept.rule:
        raise ValueError(
            f"data.scaling is {stated}, and the model to learn from was made by {kept.rule} ({kept.words()}): its weights are of "
            "numbers scaled so. Leave data.scaling unset to take its scaling"
        )
    found = data if kept == data.scaled else data.with_scaling(kept)
    own = "" if found is data else ", by the numbers of the model to learn from"
    return found, [_line(found, kept) + own]


def _line(data: Values, scaling: Scaling) -> str:
    return f"data.scaling {scaling.rule}: {_WHAT[len(data.shape)]}: {scaling.words()}"


_WHAT = {1: "vectors", 2: "sequences", 3: "fields"}
