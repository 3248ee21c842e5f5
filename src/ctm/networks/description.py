"""A network by class_path and init_args: how config.json and recipes name it, and back."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping
from typing import Any

from torch import nn

from ctm.foreign.allowed import allowed_class
from ctm.foreign.text import plain
from ctm.networks.arguments import check_arguments
from ctm.networks.base import Network

__all__ = ["build", "describe", "network_class"]


def build(spec: Mapping[str, Any]) -> nn.Module:
    """The module described by {"class_path": "package.Class", "init_args": {…}}.

    A network of ctm.networks, or one that the caller has registered (`ctm.networks.register`) or allowed (docs/security.md);
    nothing else is imported or called. Raises ValueError where the class is another one, is no Module, or refuses its arguments.
    """
    network = network_class(spec)
    arguments = dict(spec.get("init_args") or {})
    try:
        module = network(**arguments)
    except TypeError as error:
        missing = [
            name for name in ("shape", "num_classes", "arrays") if name in arguments and not _takes(network, name)
        ]
        if missing == ["arrays"]:
            raise ValueError(
                f"class {spec['class_path']}: this network takes no fields (arrays=), and it is to be built for "
                f"{plain(', '.join(arguments['arrays'] or ()))}: give its __init__ an argument arrays, or leave the fields out"
            ) from error
        if missing:
            raise ValueError(
                f"class {spec['class_path']} is built as Net(shape, num_classes, …), and its __init__ takes no {missing[0]}"
            ) from error
        raise ValueError(
            f"class {spec['class_path']} does not take these init_args: {plain(str(error), 300)}"
        ) from error
    except (ZeroDivisionError, RuntimeError, OverflowError, MemoryError, LookupError) as error:
        raise ValueError(
            f"class {spec['class_path']} cannot be built from these init_args: {plain(str(error), 300)}"
        ) from error
    module.__dict__["description"] = {"class_path": spec["class_path"], "init_args": arguments}
    return module


def _takes(network: type[nn.Module], argument: str) -> bool:
    """Whether a class can be built with an argument of that name."""
    parameters = inspect.signature(network).parameters
    return argument in parameters or any(each.kind is each.VAR_KEYWORD for each in parameters.values())


def network_class(spec: Any, asks: str = "config.json") -> type[nn.Module]:
    """The class that a description names, after its arguments were looked at: nothing is built. Errors as of `build`.

    asks: where the description was given, for the sentence about a class that is not allowed."""
    path = spec.get("class_path") if isinstance(spec, Mapping) else None
    arguments = (spec.get("init_args") or {}) if isinstance(spec, Mapping) else None
    if not isinstance(path, str) or not isinstance(arguments, Mapping) or set(spec) - {"class_path", "init_args"}:
        given = ", ".join(map(str, spec)) if isinstance(spec, Mapping) else spec
        raise ValueError(
            f"a network is given as {{'class_path': 'package.Class', 'init_args': {{…}}}}, got {plain(given)}"
        )
    own = _own_networks()
    if path in own:
        check_arguments(own[path], arguments)
        return own[path]
    if path.startswith("ctm.networks."):
        names = sorted(name for name in own if name.count(".") == 2)
        raise ValueError(f"there is no network {plain(path)}: there are {', '.join(names)}")
    return allowed_class(path, asks)


def _own_networks() -> dict[str, type[nn.Module]]:
    """The public networks of ctm, by both of their paths."""
    package = sys.modules["ctm.networks"]
    public = [getattr(package, name) for name in package.__all__]
    networks = [kind for kind in public if isinstance(kind, type) and issubclass(kind, Network)]
    return {f"{place}.{kind.__name__}": kind for kind in networks for place in ("ctm.networks", kind.__module__)}


def describe(network: nn.Module) -> dict[str, object] | None:
    """class_path and init_args of a network made by `build` or one of ctm.networks; None for any other."""
    described = network.__dict__.get("description")
    if described is not None or not isinstance(network, Network):
        return described
    module, name = type(network).__module__, type(network).__qualname__
    package = module.rpartition(".")[0]
    public = getattr(sys.modules.get(package), name, None) is type(network)
    return {"class_path": f"{package if public else module}.{name}", "init_args": network.init_args}
