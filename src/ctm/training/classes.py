"""Classes of a run: numbered as the models that it starts from number them, and kept with the student."""

from __future__ import annotations

from collections.abc import Mapping

from ctm.console import as_typed
from ctm.data import Dataset, listed_classes, match_classes
from ctm.models import AnyModel
from ctm.networks import DiffusersNetwork
from ctm.networks.diffusers import classes_in

__all__ = ["in_classes_of", "name_classes", "without_idle_labels"]


def in_classes_of(model: AnyModel, who: str, images: Dataset, *, settled: bool = False) -> Dataset:
    """The images with their classes numbered as the model numbers them, by name; as they are where either has no classes, or no
    names. who: the model in words. settled: another model has settled the numbers already.

    Raises ValueError, naming classes, where the model and the data do not have the same, and where other numbers are settled."""
    if images.labels is None or not model.num_classes:
        return images
    numbers = match_classes(images.class_names, images.labels, model, data=images.name, who=who)
    if numbers is None:
        return images
    lacking = [name for name in model.class_names if name not in images.class_names]
    if lacking:
        raise ValueError(
            f"{images.name} lacks classes that {who} knows: {', '.join(lacking[:12])}. A student has its teacher's classes: add "
            "an empty folder (or a name in class_names) for each, or train on the teacher's data"
        )
    if settled:
        raise ValueError(f"{who} numbers the classes otherwise than the teacher: train from models of the same numbers")
    return images.renumbered(numbers, list(model.class_names))


def without_idle_labels(network: object, images: Dataset) -> tuple[Dataset, list[str]]:
    """The images without their labels, and a line, where the recipe's network is one of diffusers whose settings have no classes;
    else as they are. (A network of ours is built for the classes of the data.)"""
    path, arguments = getattr(network, "class_path", ""), getattr(network, "init_args", {})
    if images.labels is None or not str(path).endswith(f".{DiffusersNetwork.__name__}"):
        return images, []
    settings = arguments.get("config")
    if not isinstance(settings, Mapping):
        return images, []
    if classes_in(arguments.get("kind", ""), settings):
        return images, []
    left = f"the network takes no labels: those of {images.name} are left out"
    return images.without_labels(), [left]


def name_classes(student: AnyModel, images: Dataset) -> list[str]:
    """Give the student the data's names of classes. Returns the line that tells them with their numbers; none without classes."""
    if images.labels is None:
        return []
    student.class_names = images.class_names
    names = listed_classes([as_typed(name) for name in images.class_names])
    return [f"classes: {names}" if names else f"{images.num_classes} classes, whose names the data do not tell"]
