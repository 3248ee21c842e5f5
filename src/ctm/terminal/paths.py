"""Paths as the user gives them: no path is empty, ~ is the home directory, and a place to write can be written."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

from jsonargparse import Namespace

from ctm.files import check_no_device, named_failures

__all__ = ["check_place", "settle_paths"]

_PATHS = (
    "checkpoint",
    "data",
    "export",
    "file",
    "first",
    "head",
    "image",
    "key",
    "mask",
    "model",
    "models",
    "name",
    "nonces",
    "out",
    "policy",
    "public",
    "results",
    "samples",
    "second",
    "state",
    "student",
    "teacher",
    "trust",
)
_OTHERS = ("init_args", "class_path", "config")  # what a recipe gives to classes, and what the parser has read already
_POSITIONAL = ("checkpoint", "file", "first", "holder", "id", "image", "model", "models", "results", "second")


def settle_paths(settings: Namespace) -> None:
    """Expand ~ in the paths of a command's settings, in place. Raises ValueError for an empty path, and for a path that ends
    in a space where no such file exists."""
    for name, value in list(vars(settings).items()):
        if name in _OTHERS:
            continue
        if isinstance(value, Namespace):
            settle_paths(value)
        elif isinstance(value, str):
            settings[name] = _settled(name, value)
        elif isinstance(value, list) and name in _PATHS:
            settings[name] = [_settled(name, each) if isinstance(each, str) else each for each in value]


def check_place(out: Path) -> None:
    """Raises OSError or ValueError, naming `out`, if that file or directory cannot be made. A command calls it before it
    computes anything. It leaves nothing behind."""
    absolute = out.absolute()
    if absolute.parent == absolute:
        raise ValueError(f"{out} is the root of the file system: give a name in a folder")
    check_no_device(absolute)
    parent = next(folder for folder in absolute.parents if folder.exists())
    if not parent.is_dir():
        raise ValueError(f"{out} cannot be written: {parent} is a file, not a directory")
    if not os.access(parent, os.W_OK):
        raise PermissionError(errno.EACCES, "cannot be written to", str(parent))
    with named_failures(out), tempfile.TemporaryFile(dir=parent):
        pass  # some file systems, such as /proc, refuse only this


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
