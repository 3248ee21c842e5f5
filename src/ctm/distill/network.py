"""The network of a student: the teacher's own, with the branch for the level s that a jump needs."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, cast

from ctm.models import AnyModel
from ctm.networks.description import describe, network_class
from ctm.preconditioning import NoiseAndSample, VariancePreserving

__all__ = ["student_network", "two_outputs"]

_OF_THE_DATA = ("shape", "num_classes", "arrays")  # a recipe's network gets these from the data


def student_network(
    teacher: AnyModel, wanted: Mapping[str, Any] | None = None, *, guided: bool = False
) -> tuple[dict[str, Any], str]:
    """({class_path, init_args} as a recipe has it, why). wanted: the user's own, which is taken as it is. guided: whether it
    takes the guidance scale as an input.

    Raises ValueError for a teacher whose network config.json does not describe or has no branch for s, and for guidance where
    the network takes none."""
    if wanted is not None:
        if not isinstance(wanted.get("class_path"), str):
            raise ValueError("--network takes '{class_path: package.Class, init_args: {…}}'")
        return dict(wanted), "as given"
    network = getattr(teacher, "network", None)
    described = None if network is None else describe(network)
    if described is None:
        raise ValueError(
            f"the teacher's network ({type(network).__name__}) is not described by a class and arguments, so that a student "
            "cannot have it: name a network by --network '{class_path: …, init_args: {…}}'"
        )
    takes = inspect.signature(network_class(described).__init__).parameters
    given = cast(Mapping[str, object], described["init_args"])
    arguments = {name: value for name, value in given.items() if name not in _OF_THE_DATA}
    branch = next((name for name in ("s_embedding", "student") if name in takes), None)
    if branch is None:
        raise ValueError(
            f"{described['class_path']} has no branch for the level s, without which nothing jumps: name another by --network"
        )
    arguments[branch] = True
    if guided and "guidance_embedding" not in takes:
        raise ValueError(f"--guidance: {described['class_path']} takes no guidance scale as an input: leave it out")
    if guided:
        arguments["guidance_embedding"] = True
    why = "the teacher's own with a branch for the level s that is zero at first: the student starts as the teacher"
    if "outputs" in takes and two_outputs(teacher) is not None:
        arguments["outputs"] = 2
        why = (
            "the teacher's own with a branch for the level s and a second output for the picture itself, both zero at first: the "
            "teacher's output, the noise, counts where there is little of it"
        )
    return {"class_path": described["class_path"], "init_args": arguments}, why


def two_outputs(teacher: AnyModel) -> NoiseAndSample | None:
    """The preconditioning of a student with two outputs, noise and picture, of a teacher that predicts the noise; None for any
    other teacher."""
    own = getattr(teacher, "preconditioning", None)
    if not isinstance(own, VariancePreserving) or own.prediction != "epsilon":
        return None
    return NoiseAndSample(own.schedule, float(teacher.sigma_data))
