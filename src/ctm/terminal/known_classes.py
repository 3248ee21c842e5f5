"""The classes that a recipe may name, and the settings of each."""

from __future__ import annotations

import importlib
import inspect
import sys
import types
from typing import get_args

__all__ = ["ROOMS", "classes_of", "fitting_classes", "settings_of"]

ROOMS = ("ctm.objectives", "ctm.networks", "ctm.discriminators", "ctm.backbones", "ctm.training", "torch.optim")


def classes_of(room: str) -> dict[str, type]:
    """The classes of a module by name. Raises ImportError where there is no such module."""
    module = importlib.import_module(room)
    made = {name: getattr(module, name) for name in getattr(module, "__all__", None) or dir(module)}
    return {name: value for name, value in made.items() if inspect.isclass(value) and not name.startswith("_")}


def fitting_classes(hint: object) -> list[str]:
    """The names of the classes that fit a type such as list[Objective] or Callable[..., Optimizer]; none for one of numbers."""
    base = _class_in(hint)
    if base is None or base.__module__ == "builtins":
        return []
    found = {name: value for room in ROOMS for name, value in classes_of(room).items()}
    return sorted(
        name
        for name, value in found.items()
        if issubclass(value, base) and value is not base and not inspect.isabstract(value)
    )


def _class_in(hint: object) -> type | None:
    """The last class in a type, the one that a function of it gives."""
    inner = [each for each in get_args(hint) if each is not types.NoneType]
    return _class_in(inner[-1]) if inner else hint if inspect.isclass(hint) else None


def settings_of(class_path: str) -> list[str] | None:
    """Names of a class's settings; None where it takes any, and where nothing of its module was imported yet."""
    module, _, name = class_path.rpartition(".")
    made = getattr(sys.modules.get(module), name, None)
    if made is None:
        return None
    parameters = inspect.signature(made).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return None
    return [parameter.name for parameter in parameters if parameter.kind is not parameter.VAR_POSITIONAL]
