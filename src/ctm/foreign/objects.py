"""An object of a user's own program, named by its import path: `package.module:object`, or `package.module.Class`."""

from __future__ import annotations

import re
from importlib import import_module
from inspect import isclass, isfunction, ismodule

from ctm.foreign.allowed import is_allowed, refusal
from ctm.foreign.text import plain

__all__ = ["imported_object", "is_object_path"]

_DOTTED = r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*"
_WITH_COLON = re.compile(rf"{_DOTTED}:{_DOTTED}", re.ASCII)
_WITH_DOT = re.compile(rf"{_DOTTED}\.[A-Za-z_]\w*", re.ASCII)


def is_object_path(text: str) -> bool:
    """Whether a text names an object by its import path: `module:object`, or the dotted path of something in a module that the
    user allows. Nothing is imported."""
    return bool(_WITH_COLON.fullmatch(text)) or bool(_WITH_DOT.fullmatch(text) and is_allowed(text))


def imported_object(text: str, asks: str) -> object:
    """The object of that import path; of a class or function what it returns without arguments.

    Its module must be allowed, and so must the module in which a class or function is defined. asks: who names it, for errors.
    Raises ValueError for a module that is not allowed (nothing is imported then), and for what cannot be imported or made."""
    module, _, name = text.partition(":") if ":" in text else text.rpartition(".")
    if not is_allowed(module):
        raise ValueError(refusal(f"{module}.{name}", asks, "ctm's own models"))
    try:
        found: object = import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except Exception as error:  # the module's own code runs, and may raise anything
        raise ValueError(
            f"{asks} {text} cannot be imported ({_reason(error)}): check the name, and that PYTHONPATH has the directory of "
            f"{module.partition('.')[0]}"
        ) from error
    if ismodule(found):
        raise ValueError(f"{asks} {text} is a module: name an object in it, such as {module}:model")
    if not isclass(found) and not isfunction(found):
        return found
    own = f"{found.__module__}.{found.__qualname__}"
    if not is_allowed(own):
        raise ValueError(refusal(own, asks, "ctm's own models"))
    try:
        return found()
    except Exception as error:
        raise ValueError(f"{asks} {text} cannot be made without arguments ({_reason(error)})") from error


def _reason(error: Exception) -> str:
    return plain(f"{type(error).__name__}: {error}", 200)
