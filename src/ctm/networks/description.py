"""A network by class_path and init_args: how config.json and recipes name it, and back."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from typing import Any

from torch import nn

from ctm.networks.base import Network

__all__ = ["build", "describe"]


def build(spec: Mapping[str, Any]) -> nn.Module:
    """The module described by {"class_path": "package.Class", "init_args": {…}}.

    Only subclasses of torch.nn.Module are called, so that a config.json cannot run anything else. Raises ValueError where
    the class is missing, is no Module, or refuses its arguments.
    """
    path = spec.get("class_path") if isinstance(spec, Mapping) else None
    if not isinstance(path, str) or "." not in path:
        raise ValueError(f"a network is given as {{'class_path': 'package.Class', 'init_args': {{…}}}}, got {spec!r}")
    module_name, _, class_name = path.rpartition(".")
    try:
        built_class = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"class {path} cannot be imported ({error}): check class_path") from error
    if not (isinstance(built_class, type) and issubclass(built_class, nn.Module)):
        raise ValueError(f"class {path} is not a torch.nn.Module: class_path must name one")
    arguments = dict(spec.get("init_args") or {})
    try:
        module = built_class(**arguments)
    except TypeError as error:
        raise ValueError(f"class {path} does not take these init_args: {error}") from error
    module.__dict__["description"] = {"class_path": path, "init_args": arguments}
    return module


def describe(network: nn.Module) -> dict[str, Any] | None:
    """class_path and init_args of a network made by `build` or one of ctm.networks; None for any other."""
    described = network.__dict__.get("description")
    if described is not None or not isinstance(network, Network):
        return described
    module, name = type(network).__module__, type(network).__qualname__
    package = module.rpartition(".")[0]
    public = getattr(sys.modules.get(package), name, None) is type(network)
    return {"class_path": f"{package if public else module}.{name}", "init_args": network.init_args}
