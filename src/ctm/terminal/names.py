"""The classes and functions that a recipe may name. Any other name is refused before anything of its module is imported."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from importlib import import_module

from jsonargparse import Namespace, set_parsing_settings

from ctm.foreign.allowed import allowed_modules, is_allowed, refusal, registered
from ctm.foreign.text import plain

__all__ = ["check_entries", "explained", "restrict_names"]

_CLASSES = (
    "ctm.networks",
    "ctm.objectives",
    "ctm.backbones",
    "ctm.discriminators",
    "ctm.training",
    "torch.optim",
    "schedulefree",
)
_FUNCTIONS = ("ctm.noise", "ctm.solvers", "ctm.weighting", "ctm.objectives.adversarial_losses")
_WORDS = "ctm's networks, objectives, backbones, discriminators and training, nor of torch.optim"
_DENIED = re.compile(r"Importing '([^']*)' is not allowed")
_allowed: set[str] = set()  # the strangers' modules that jsonargparse was last told to admit


def restrict_names() -> None:
    """From now on, jsonargparse imports for a value only what a recipe needs and what the user allows."""
    now = {*allowed_modules(), *(path for path in registered() if "<" not in path)}
    set_parsing_settings(
        import_path_denylist=["*", *sorted(_allowed - now)],
        import_path_allowlist=[*_CLASSES, *_FUNCTIONS, *sorted(now)],
    )
    _allowed.clear()
    _allowed.update(now)


def explained(message: str) -> str | None:
    """Our sentence for a parser's message that says a name was refused; None for any other message."""
    denied = _DENIED.search(message)
    return None if denied is None else refusal(denied[1], "the recipe", _WORDS)


def check_entries(settings: object) -> None:
    """Raises ValueError for a name in a parsed recipe that is not a public class of its room, not a function of the maths,
    and not allowed by the user. A class_path that names a function would be called with the recipe's own arguments."""
    waiting = [settings]
    while waiting:
        value = waiting.pop()
        if isinstance(value, Namespace | Mapping):
            entries = vars(value) if isinstance(value, Namespace) else value
            if isinstance(entries.get("class_path"), str):
                _check_class(entries["class_path"])
            waiting += entries.values()
        elif isinstance(value, list | tuple):
            waiting += value
        elif inspect.isfunction(value) or inspect.isbuiltin(value):
            _check_function(f"{value.__module__}.{value.__qualname__}")


def _check_class(path: str) -> None:
    if is_allowed(path) or path in registered():
        return
    room = next((room for room in _CLASSES if path.startswith(f"{room}.")), None)
    name = path.rpartition(".")[2]
    if room is None or not isinstance(getattr(import_module(room), name, None), type):
        raise ValueError(
            f"the recipe's class_path {plain(path)} names no public class of {room or 'ctm or torch.optim'}: "
            "an entry must be a class of its kind, such as ctm.objectives.Matching"
        )


def _check_function(path: str) -> None:
    if not is_allowed(path) and not any(path.startswith(f"{room}.") for room in _FUNCTIONS):
        raise ValueError(
            f"the recipe names the function {plain(path)}: functions of {', '.join(_FUNCTIONS)} serve there, or of a "
            "module allowed by --allow"
        )
