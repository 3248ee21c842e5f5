"""Which classes and functions a file may name: those that ctm has, and those that the user allows. Nothing else is imported.

A module is allowed by `--allow MODULE` on the command line, by CTM_ALLOW=MODULE,MODULE in the environment, or by
`allowing(…)` in a program. A single class is allowed by `ctm.networks.register`. A file never allows itself."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, TypeVar

from ctm.foreign.text import plain, raised

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    "allowed_class",
    "allowed_modules",
    "allowing",
    "is_allowed",
    "refusal",
    "register",
    "registered",
    "take_allowed",
]

_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", re.ASCII)
_LONGEST = 200
_CLASSES: dict[str, type[nn.Module]] = {}
_MODULES: list[str] = []  # by `allowing`
_COMMAND: list[str] = []  # by the options of the command that runs
Class = TypeVar("Class", bound="type[nn.Module]")


def register(network: Class) -> Class:
    """The class itself, which config.json may now name in this process. It can be used as a decorator.

    Raises TypeError for anything but a subclass of torch.nn.Module."""
    from torch import nn  # here, because the command line takes its options before torch is there

    if not (isinstance(network, type) and issubclass(network, nn.Module)):
        raise TypeError(f"only a subclass of torch.nn.Module can be registered as a network, got {network!r}")
    _CLASSES[f"{network.__module__}.{network.__qualname__}"] = network
    return network


def registered() -> tuple[str, ...]:
    """The paths of the registered classes."""
    return tuple(_CLASSES)


@contextmanager
def allowing(*modules: str) -> Iterator[None]:
    """Inside the block, files may name what is in these modules and below them: "mynets", or "mynets,mypackage.losses".

    Raises ValueError for a text that is no module's name."""
    names = [name for text in modules for name in _names(text, "--allow")]
    _MODULES.extend(names)
    try:
        yield
    finally:
        del _MODULES[len(_MODULES) - len(names) :]


def take_allowed(arguments: Sequence[str]) -> list[str]:
    """The arguments of a command without `--allow MODULE`. Its modules are allowed until the next command.

    Raises ValueError if no module's name follows."""
    left: list[str] = []
    modules: list[str] = []
    waiting = iter(arguments)
    for argument in waiting:
        option, equals, value = argument.partition("=")
        if option == "--allow":
            modules += _names(value if equals else next(waiting, ""), "--allow")
        else:
            left.append(argument)
    _COMMAND[:] = modules
    return left


def allowed_modules() -> tuple[str, ...]:
    """The modules that the user allows, by `allowing` or by CTM_ALLOW. Raises ValueError if CTM_ALLOW is no list of names."""
    return (*_MODULES, *_COMMAND, *_names(os.environ.get("CTM_ALLOW", ""), "CTM_ALLOW"))


def _names(text: str, source: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    wrong = [name for name in names if not _PATH.fullmatch(name) or len(name) > _LONGEST]
    if wrong or (not names and source == "--allow"):
        raise ValueError(
            f"{source} takes modules such as mynets or mypackage.nets, with commas between them, got {text!r}"
        )
    return names


def is_allowed(path: str) -> bool:
    """Whether a dotted path is an allowed module or lies below one."""
    return any(path == module or path.startswith(f"{module}.") for module in allowed_modules())


def refusal(path: str, asks: str = "config.json", own: str = "ctm.networks") -> str:
    """The sentence for a name that is not allowed, with the option that would allow it."""
    if not _PATH.fullmatch(path) or "." not in path or len(path) > _LONGEST:
        return f"{asks} names the class {plain(path)!r}, which is no name of a class such as mynets.Net"
    module, top = path.rpartition(".")[0], path.partition(".")[0]
    if top in sys.stdlib_module_names or top in ("ctm", "torch", "jsonargparse"):
        return f"{asks} asks for {path}, which is not part of {own}, and no model needs it: nothing was imported"
    return (
        f"{asks} asks for {path}, which is not part of {own}: nothing was imported. "
        f"If you trust it, repeat the command with --allow {module} (or set CTM_ALLOW={module})"
    )


def allowed_class(path: str, asks: str = "config.json") -> type[nn.Module]:
    """The network class of that dotted path: a registered one, or one in an allowed module, which is imported.

    asks: where the path was given, for the sentence.
    Raises ValueError for a path that is not allowed, cannot be imported, or names anything but a subclass of torch.nn.Module
    that was defined in an allowed module."""
    from torch import nn

    if path in _CLASSES:
        return _CLASSES[path]
    if not is_allowed(path) or not _PATH.fullmatch(path):
        raise ValueError(refusal(path, asks))
    module, _, name = path.rpartition(".")
    try:
        named: object = getattr(import_module(module), name)
    except (Exception, SystemExit) as error:  # the module's own code runs, and may raise anything
        if isinstance(error, SystemExit) and type(error) is not SystemExit:
            raise  # the end that a signal asks of the command
        raise ValueError(
            f"class {path} cannot be imported ({raised(error)}): check class_path, and that PYTHONPATH has the directory of "
            f"{module.partition('.')[0]}"
        ) from error
    if not (isinstance(named, type) and issubclass(named, nn.Module)):
        raise ValueError(f"class {path} is not a torch.nn.Module: class_path must name one")
    if not is_allowed(f"{named.__module__}.{named.__qualname__}"):
        raise ValueError(refusal(f"{named.__module__}.{named.__qualname__}", asks))
    return named
