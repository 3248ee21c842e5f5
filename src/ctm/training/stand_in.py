"""What a dry run takes in place of data, models and feature networks that are not on this machine: things of the same shape."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch

from ctm.backbones import TeacherEncoder
from ctm.backbones.base import Backbone
from ctm.data import Images
from ctm.data.stack import sides_of
from ctm.objectives import LPIPS, FeatureDistance, Objective, Squared
from ctm.training.recipe import Recipe

__all__ = ["found_or_none", "random_images", "usable_features", "with_usable_features"]

Thing = TypeVar("Thing")

_CLASSES = 10
# (part of the name, side, channels, classes) of sets that recipes and their users name
_KNOWN = (
    ("fashion", 28, 1, 10),
    ("mnist", 28, 1, 10),
    ("digits", 8, 1, 10),
    ("cifar100", 32, 3, 100),
    ("cifar10", 32, 3, 10),
    ("ilsvrc", None, 3, 1000),
    ("imagenet", None, 3, 1000),
)


def random_images(recipe: Recipe, reason: str) -> tuple[Images, str]:
    """Random pictures of the shape that a recipe's data have, and a line that says what was assumed.

    reason: why the data themselves are not there, in words. Raises FileNotFoundError where the recipe does not tell the size."""
    data = recipe.data
    name = data.name.lower()
    _, side, channels, classes = next((known for known in _KNOWN if known[0] in name), ("", None, None, None))
    size = data.size or side
    if size is None:
        raise FileNotFoundError(
            f"{reason}. A dry run takes random pictures in their place once it knows their size: give --data.size"
        )
    sides = sides_of(size)
    depth = data.channels or channels or 3
    assumed = [] if data.channels or channels else ["3 channels (data.channels is not set)"]
    assumed += [] if classes else [f"{_CLASSES} classes (a recipe does not say how many)"]
    classes = classes or _CLASSES
    count = max(recipe.data.batch_size, classes)
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (count, *sides, depth), dtype=np.uint8)
    labels = np.arange(count) % classes
    line = f"data: {data.name} is not here; {count} random pictures {sides[1]}×{sides[0]}, {depth} channels, {classes} classes "
    line += "stand in"
    line += f"; assumed: {', '.join(assumed)}" if assumed else ""
    return Images(pixels, labels, [str(number) for number in range(classes)], data.name, "random pictures"), line


def found_or_none(load: Callable[[], Thing], what: str, instead: str, lines: list[str] | None) -> Thing | None:
    """What `load` gives; None, and a line that says what is taken instead, where that is not on this machine. lines None: the
    FileNotFoundError goes on, with what and its option."""
    try:
        return load()
    except FileNotFoundError as error:
        if lines is None:
            raise FileNotFoundError(f"the {what} (--{what} MODEL): {error}") from error
        lines.append(f"{what}: not here ({error}); {instead}")
        return None


class _NoneLeft(Exception):
    """No feature network of an object can be used."""


def with_usable_features(recipe: Recipe, lines: list[str] | None) -> Recipe:
    """The recipe with `usable_features` of its objectives; those that are left out take their factors with them."""
    usable = usable_features(recipe.objectives, lines)
    kept = [index for index, objective in enumerate(usable) if objective is not None]
    factors = recipe.loss_factors and [recipe.loss_factors[index] for index in kept]
    objectives = [objective for objective in usable if objective is not None]
    return dataclasses.replace(recipe, objectives=objectives, loss_factors=factors)


def usable_features(objectives: list[Objective], lines: list[str] | None) -> list[Objective | None]:
    """The objectives with feature networks that this machine has. Where a package or its weights are missing, lines None means
    ValueError with what to install; else the network is left out or gets random weights, and a line says so. None in place of
    an Adversarial that has no feature network left: a line says this, too."""
    usable: list[Objective | None] = []
    for objective in objectives:
        try:
            usable.append(_usable(objective, lines))
        except _NoneLeft:
            assert lines is not None
            lines.append(
                f"objective: {type(objective).__name__} is left out, for none of its feature networks is installed: its time and "
                "memory are not in these numbers. pip install 'ctm-torch[features]'"
            )
            usable.append(None)
    return usable


def _usable(value: object, lines: list[str] | None) -> Any:
    """The same object, with usable feature networks in it."""
    if isinstance(value, LPIPS):
        return (
            value
            if _works(lambda: value.trunk.heads("cpu"), "distance: LPIPS", "the squared distance", lines)
            else Squared()
        )
    if not dataclasses.is_dataclass(value) or isinstance(value, type | Backbone):
        return value
    changed = {}
    for field in dataclasses.fields(value):
        inner = getattr(value, field.name)
        if isinstance(inner, list | tuple) and any(isinstance(entry, Backbone) for entry in inner):
            usable = [network for network in (_usable_backbone(entry, lines) for entry in inner) if network is not None]
            if not usable and isinstance(value, FeatureDistance):
                return Squared()
            if not usable:
                raise _NoneLeft
            new: object = type(inner)(usable)
        else:
            new = _usable(inner, lines)
        if new is not inner and new != inner:
            changed[field.name] = new
    return dataclasses.replace(value, **changed) if changed else value


def _usable_backbone(backbone: Backbone, lines: list[str] | None) -> Backbone | None:
    if isinstance(backbone, TeacherEncoder):
        return backbone
    image = torch.zeros(1, 3, backbone.side, backbone.side)
    name = type(backbone).__name__

    def look() -> Any:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            return backbone(image)

    try:
        return backbone if _works(look, f"feature network: {name}", "nothing", lines) else None
    except (OSError, RuntimeError) as error:  # a download that fails
        if lines is None or not getattr(backbone, "pretrained", False):
            raise
        lines.append(
            f"feature network: the weights of {name} are not here ({type(error).__name__}); random ones stand in"
        )
        return dataclasses.replace(backbone, pretrained=False)  # type: ignore[type-var]


def _works(look: Callable[[], object], what: str, instead: str, lines: list[str] | None) -> bool:
    try:
        look()
    except ImportError as error:
        if lines is None:
            raise ValueError(str(error)) from error
        lines.append(
            f"{what} is not installed; {instead} stands in, so that time and memory are less than the run's ({error})"
        )
        return False
    return True
