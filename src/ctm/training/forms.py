"""The form of what a run directory's files hold, judged before anything is done with it."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from ctm.foreign.text import plain

__all__ = ["is_number", "recipe_damage"]

_MOST_STEPS = 10**15


def is_number(value: Any) -> bool:
    """Whether a value of a file is a finite number: no boolean, and none beyond floats."""
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


def recipe_damage(settings: object) -> str | None:
    """What is wrong with the settings in a run directory, whatever recipe they are compared with; None where nothing is."""
    if not isinstance(settings, Mapping):
        return "it is no recipe in YAML"
    waiting: list[Any] = [settings]
    while waiting:
        value = waiting.pop()
        names = list(value) if isinstance(value, Mapping) else []
        wrong = [name for name in names if not isinstance(name, str)]
        if wrong:
            return f"it has the name {plain(str(wrong[0]), 40)}, which is no text"
        waiting += [value[name] for name in names] if names else value if isinstance(value, list) else []
    steps = settings.get("steps")
    if type(steps) is not int or not 0 < steps <= _MOST_STEPS:
        return f"steps is {plain(str(steps), 40)}, no whole number from 1 on"
    return None
