"""How a command's help is laid out: each option with what it takes and, where it has one, its default."""

from __future__ import annotations

import argparse
import inspect
import re
import types
from collections.abc import Mapping
from typing import get_args

from jsonargparse import DefaultHelpFormatter, Namespace

__all__ = ["Help"]

_METAVARS: dict[object, str] = {int: "N", float: "X"}
_PRINT = "--print_config"


class Help(DefaultHelpFormatter):
    """Whole numbers are shown as N and other numbers as X; a default stands behind the words that do not say it."""

    def _get_help_string(self, action: argparse.Action) -> str:
        if _PRINT in action.option_strings:
            return "print all settings as they would be used, and stop"
        text = action.help or ""
        if isinstance(action, argparse._HelpAction):
            return "show this help and stop"
        notes = []
        if action.required and action.option_strings:
            notes.append("required")
        takes_value = action.option_strings and action.nargs != 0
        if takes_value and action.default not in (None, argparse.SUPPRESS) and "default:" not in text:
            notes.append(f"default: {_shown(action.default)}")
        return f"{text.removesuffix('.') if notes and text else text} ({'; '.join(notes)})".lstrip() if notes else text

    def _get_default_metavar_for_optional(self, action: argparse.Action) -> str:
        hint = action.type or getattr(action, "_typehint", None)
        kinds = [kind for kind in get_args(hint) if kind is not types.NoneType] or [hint]
        return (
            _METAVARS.get(kinds[0], super()._get_default_metavar_for_optional(action))
            if len(kinds) == 1
            else (super()._get_default_metavar_for_optional(action))
        )

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if _PRINT in action.option_strings:
            return _PRINT
        return re.sub(r", --[\w.]+\+ \S+", "", super()._format_action_invocation(action))


def _shown(value: object) -> str:
    """A default in words: a class by its name with its settings, a function by its name."""
    if isinstance(value, Namespace):
        value = value.as_dict()
    if isinstance(value, bool):
        return str(value).lower()
    if inspect.isroutine(value):
        return value.__name__
    if isinstance(value, Mapping) and "class_path" in value:
        settings = ", ".join(f"{name} {_shown(inner)}" for name, inner in (value.get("init_args") or {}).items())
        return f"{value['class_path']}{f' with {settings}' if settings else ''}"
    return str(value)
