"""Weights, averages and optimiser states divided among processes (FSDP2, torch.distributed.fsdp.fully_shard).

Each process keeps its share of every tensor; the layers of a block are gathered while they compute. Checkpoints hold whole
tensors, the same files that an unsharded run writes.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, get_optimizer_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from ctm.models import AnyModel

__all__ = ["WholeModule", "WholeOptimizer", "reshard", "shard_networks"]

_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)  # in the main process; the others get an empty dict


def shard_networks(models: Iterable[AnyModel], last_layers: Iterable[nn.Module], device: torch.device) -> None:
    """Divide the parameters of the models' networks, in place, among all processes: each block (entry of a ModuleList) as
    one group, the rest as another. A block with the last layer is not a group of its own: the rest stays gathered between
    forward and backward, when `balance` asks for the gradient of that layer's weight."""
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    for model, last in zip(models, last_layers, strict=True):
        lists = [child for child in model.network.children() if isinstance(child, nn.ModuleList)]
        for block in (block for entries in lists for block in entries):
            if last not in block.modules() and any(True for _ in block.parameters()):
                fully_shard(block, mesh=mesh)
        fully_shard(model.network, mesh=mesh, reshard_after_forward=False)


def reshard(models: Iterable[Any]) -> None:
    """Put back to shares what a forward without backward left gathered."""
    for model in models:
        model.network.reshard()


class WholeModule:
    """A sharded module as a checkpoint sees it. Every process makes one at the same moment: where `gather`, its tensors are
    then brought together in the main process, and the other processes keep none. Each process loads a whole state by itself."""

    def __init__(self, module: nn.Module, *, gather: bool) -> None:
        self.module = module
        self._state: dict[str, Any] = get_model_state_dict(module, options=_WHOLE) if gather else {}

    def state_dict(self) -> dict[str, Tensor]:
        return self._state

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        own = self.module.state_dict()
        self.module.load_state_dict({name: _share(value, own.get(name)) for name, value in state.items()})


class WholeOptimizer:
    """A sharded optimiser likewise: what it keeps in the shape of a parameter is divided as the parameter is."""

    def __init__(self, optimizer: Any, *, gather: bool) -> None:
        self.optimizer = optimizer
        self._state = _gathered(optimizer) if gather else {}

    def state_dict(self) -> dict[str, Any]:
        return self._state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        shares = {
            index: {name: _share(value, parameters[index]) for name, value in kept.items()}
            for index, kept in state["state"].items()
        }
        self.optimizer.load_state_dict({**state, "state": shares})


def _gathered(optimizer: Any) -> dict[str, object]:
    """The whole state in the main process, {} in the others. torch names parameters by their module; here this is a list of
    them, so that the names are the numbers that an unsharded optimiser's state has."""
    numbered = nn.ParameterList(p for group in optimizer.param_groups for p in group["params"])
    state: dict[str, Any] = get_optimizer_state_dict(numbered, [optimizer], options=_WHOLE)
    groups = [{**group, "params": [int(name) for name in group["params"]]} for group in state.get("param_groups", [])]
    return (
        {"state": {int(name): kept for name, kept in state["state"].items()}, "param_groups": groups} if state else {}
    )


def _share(value: object, like: object) -> Any:
    """This process's share of a whole tensor, where `like` is sharded and has its shape."""
    if not (isinstance(like, DTensor) and isinstance(value, Tensor) and value.shape == like.shape):
        return value
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)
