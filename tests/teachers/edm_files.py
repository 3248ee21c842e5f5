"""Files in the form of EDM's network pickles, written for tests: the form alone, without EDM's classes."""

from __future__ import annotations

import pickle
import sys
import types
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

SOURCE = "raise SystemExit('the code in a checkpoint must never run')"
BUFFERS = ("resample_filter", "freqs")


def _reconstruct_persistent_obj(meta):
    raise AssertionError("reading a checkpoint must not call what it names")


_reconstruct_persistent_obj.__module__ = "torch_utils.persistence"
_reconstruct_persistent_obj.__qualname__ = "_reconstruct_persistent_obj"


@contextmanager
def persistence():
    """While pickling only: modules of the names that an EDM pickle mentions."""
    package, module = types.ModuleType("torch_utils"), types.ModuleType("torch_utils.persistence")
    module._reconstruct_persistent_obj = _reconstruct_persistent_obj
    sys.modules["torch_utils"], sys.modules["torch_utils.persistence"] = package, module
    try:
        yield
    finally:
        del sys.modules["torch_utils"], sys.modules["torch_utils.persistence"]


class Persistent:
    """Pickles as EDM's persistent objects do."""

    def __init__(self, class_name: str, **state: Any) -> None:
        self.class_name, self.state = class_name, state

    def __reduce__(self):
        meta = {"type": "class", "version": 6, "module_src": SOURCE, "class_name": self.class_name, "state": self.state}
        return _reconstruct_persistent_obj, (meta,), None


def _module(
    class_name: str,
    tensors: Mapping[str, Tensor],
    arguments: Mapping[str, Any] | None,
    *,
    head_channels: int | None = None,
    **attributes: Any,
) -> Persistent:
    """A tree of persistent modules from dotted names. A network's enc and dec are torch's own ModuleDict."""
    children: dict[str, dict[str, Tensor]] = {}
    parameters: dict[str, Any] = OrderedDict(bias=None)
    buffers: dict[str, Any] = OrderedDict()
    for name, value in tensors.items():
        head, _, rest = name.partition(".")
        if rest:
            children.setdefault(head, {})[rest] = value
        elif head in BUFFERS:
            buffers[head] = value
        else:
            parameters[head] = nn.Parameter(value)
    modules: dict[str, Any] = OrderedDict(skip=None)
    for name, inside in children.items():
        modules[name] = (
            _module_dict(inside, head_channels) if name in ("enc", "dec") else _module("Linear", inside, None)
        )
    return Persistent(
        class_name,
        training=False,
        _parameters=parameters,
        _buffers=buffers,
        _non_persistent_buffers_set=set(),
        _backward_hooks=OrderedDict(),
        _modules=modules,
        skip_scale=np.sqrt(0.5),
        _init_args=(),
        _init_kwargs=dict(arguments or {}),
        **attributes,
    )


def _module_dict(tensors: Mapping[str, Tensor], head_channels: int | None) -> nn.ModuleDict:
    """Blocks know their heads, as EDM's do: one, or one for every head_channels channels."""
    made = nn.ModuleDict()
    inside: dict[str, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        head, _, rest = name.partition(".")
        inside.setdefault(head, {})[rest] = value
    for name, values in inside.items():
        qkv = values.get("qkv.weight")
        width = 0 if qkv is None else qkv.shape[1]
        heads = 0 if qkv is None else 1 if head_channels is None else width // head_channels
        made._modules[name] = _module("UNetBlock", values, None, out_channels=width, num_heads=heads)
    return made


def edm_object(
    tensors: Mapping[str, Tensor],
    arguments: Mapping[str, Any],
    precond: str = "EDMPrecond",
    *,
    head_channels: int | None = None,
    sigma_data: float = 0.5,
) -> Persistent:
    """The preconditioned network with these tensors ("model.…") and the arguments it was made with."""
    inner = {name.removeprefix("model."): value for name, value in tensors.items()}
    given = dict(arguments)
    own = {k: given.pop(k) for k in ("img_resolution", "img_channels", "label_dim", "model_type") if k in given}
    model = {"img_resolution": own["img_resolution"], "label_dim": own.get("label_dim", 0), **given}
    made = _module(precond, {}, arguments, use_fp16=False, sigma_min=0, sigma_max=float("inf"), sigma_data=sigma_data)
    made.state.update(own, label_dim=own.get("label_dim", 0))
    made.state["_modules"] = OrderedDict(model=_module(own["model_type"], inner, model, head_channels=head_channels))
    return made


def write_edm(path: Path, tensors, arguments, *, protocol: int = 4, precond: str = "EDMPrecond", **more: Any) -> Path:
    """An EDM network file: {"ema": network, "loss_fn": …, "augment_pipe": None, "dataset_kwargs": …}."""
    contents = {
        "ema": edm_object(tensors, arguments, precond, **more),
        "loss_fn": Persistent("EDMLoss", P_mean=-1.2, P_std=1.2, sigma_data=0.5),
        "augment_pipe": None,
        "dataset_kwargs": {"class_name": "training.dataset.ImageFolderDataset", "path": "data.zip"},
    }
    write_pickle(path, contents, protocol)
    return path


def write_pickle(path: Path, contents: Any, protocol: int = 4) -> Path:
    with persistence(), path.open("wb") as file:
        pickle.dump(contents, file, protocol=protocol)
    return path


def example_tensors() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "model.map_layer0.weight": torch.randn(4, 3, generator=generator),
        "model.enc.8x8_conv.weight": torch.randn(4, 3, 3, 3, generator=generator),
        "model.enc.8x8_down.conv0.resample_filter": torch.full((1, 1, 2, 2), 0.25),
        "model.dec.8x8_aux_conv.weight": torch.randn(3, 4, 3, 3, generator=generator).half(),
    }
