"""Paths as they are given: none is empty, and ~ is the home directory."""

from __future__ import annotations

import os

from jsonargparse import Namespace

__all__ = ["settle_paths"]

_PATHS = (
    "checkpoint",
    "data",
    "first",
    "image",
    "mask",
    "model",
    "name",
    "out",
    "results",
    "samples",
    "second",
    "student",
    "teacher",
)
_OTHERS = ("init_args", "class_path", "config")  # what a recipe gives to classes, and what the parser has read already
_POSITIONAL = ("checkpoint", "first", "image", "model", "results", "second")


def settle_paths(settings: Namespace) -> None:
    """Expand ~ in the paths of a command's settings, in place. Raises ValueError for an empty text, and for a path with a
    space at its end where nothing of that name is there."""
    for name, value in list(vars(settings).items()):
        if name in _OTHERS:
            continue
        if isinstance(value, Namespace):
            settle_paths(value)
        elif isinstance(value, str):
            settings[name] = _settled(name, value)
        elif isinstance(value, list) and name in _PATHS:
            settings[name] = [_settled(name, each) if isinstance(each, str) else each for each in value]


def _settled(name: str, value: str) -> str:
    shown = name.upper() if name in _POSITIONAL else f"--{name}"
    if not value.strip():
        raise ValueError(f"{shown} is empty: give a value, or leave it out")
    if name not in _PATHS:
        return value
    if "\0" in value:
        raise ValueError(f"{shown} {value!r} holds a zero byte, which no path has")
    path = os.path.expanduser(value)
    if path.startswith("~"):
        raise ValueError(f"{shown} {value!r}: the home directory of that name is not known, write the path out")
    if value != value.strip() and not os.path.exists(path):
        raise ValueError(f"{shown} {value!r} begins or ends with a space: leave the space out")
    return path
