"""Low-rank adapters on a network's layers (LoRA, arXiv 2106.09685): y = W·x + (α/r)·B·A·x, with W another network's own tensor.

A student with adapters holds its teacher's weights themselves, no copy of them. So do the copies that `copy_sharing` makes of it
(target, averages): each has tensors of its own for what is trained alone. Nothing is switched on or off between them, so that
a block which is computed again in the backward pass has the adapters that it had before."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ctm.foreign.text import with_article
from ctm.networks.description import build, describe

__all__ = [
    "OwnTensors",
    "add_adapters",
    "copy_sharing",
    "is_shared",
    "merged_network",
    "own_tensors",
    "with_merged_network",
]

Module = TypeVar("Module", bound=nn.Module)
_NAME = "default"  # peft's for the one set of adapters that a network has here
_BASE = ".base_layer."


def is_shared(tensor: Tensor) -> bool:
    """Whether a tensor belongs to the network underneath, and is in the memory once for all copies."""
    return bool(getattr(tensor, "shared_with_teacher", False))


def add_adapters(network: nn.Module, teacher: nn.Module, *, rank: int, alpha: float | None = None) -> list[str]:
    """Let `network` hold the tensors of `teacher` in the place of its own equal ones, frozen, with an adapter of that rank at
    each linear layer and convolution that they are of. What the teacher has not (a student's branches), and the last layer, whose
    gradient balances the losses, stay the network's own and are trained whole. In place.

    alpha: the scale of adapters is alpha/rank; None: alpha = rank. The network computes the same as before: B is zero at first.
    Returns the names of the layers that have one. Raises ImportError without peft, and ValueError where no layer is the
    teacher's."""
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ImportError("adapters (LoRA) need peft: pip install 'ctm-torch[lora]'") from error
    kept = getattr(network, "last_layer", None)
    _share(network, teacher, kept if isinstance(kept, nn.Module) else None)
    layers = [
        name
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d) and is_shared(module.weight)
    ]
    if not layers:
        raise ValueError("no layer of the student has its teacher's weights, so that there is nothing to adapt")
    own = [p for p in network.parameters() if not is_shared(p)]
    exactly = "|".join(map(re.escape, layers))
    scale: Any = rank if alpha is None else alpha  # peft says int, and takes any number
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=scale, target_modules=exactly), network, _NAME)
    for parameter in own:  # peft freezes all but its own
        parameter.requires_grad_(True)
    return layers


def _share(network: nn.Module, teacher: nn.Module, kept: nn.Module | None) -> None:
    """Put the teacher's tensors in the place of those of the same name and shape, but for those of the module `kept`."""
    theirs = {**dict(teacher.named_parameters()), **dict(teacher.named_buffers())}
    for path, module in network.named_modules():
        if module is kept:
            continue
        for held in (module._parameters, module._buffers):
            for name, tensor in held.items():
                other = theirs.get(f"{path}.{name}" if path else name)
                if tensor is not None and other is not None and other.shape == tensor.shape:
                    other.requires_grad_(False)
                    other.shared_with_teacher = True  # type: ignore[attr-defined]
                    held[name] = other


def copy_sharing(module: Module) -> Module:
    """A copy with tensors of its own, but for those that are shared."""
    tensors = [*module.parameters(), *module.buffers()]
    return copy.deepcopy(module, {id(tensor): tensor for tensor in tensors if is_shared(tensor)})


def own_tensors(module: nn.Module) -> dict[str, Tensor]:
    """The tensors of a module's state that are not shared: adapters, a student's branches, the last layer."""
    return {n: t.detach() for n, t in module.state_dict(keep_vars=True).items() if not is_shared(t)}


class OwnTensors:
    """A module's own tensors as what a checkpoint holds of it."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def state_dict(self) -> dict[str, Tensor]:
        return own_tensors(self.module)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Raises ValueError where the state is of other tensors."""
        expected = own_tensors(self.module).keys()
        if expected != state.keys():
            other = sorted(expected ^ state.keys())
            raise ValueError(f"{len(other)} tensors are not those of these adapters, first {other[0]}")
        self.module.load_state_dict(dict(state), strict=False)


def merged_network(network: nn.Module) -> nn.Module:
    """A plain network with W + (α/r)·B·A in the place of each adapted layer. It computes the same to rounding and shares nothing.
    Raises ValueError for a network that is not described by a class and arguments."""
    description = describe(network)
    if description is None:
        raise ValueError(
            f"{with_article(type(network).__name__)} is not described by a class and arguments, so that it is not merged"
        )
    with torch.random.fork_rng(devices=[]):
        plain = build(description)
    state: dict[str, Tensor] = {}
    adapted: dict[str, Any] = {name: m for name, m in network.named_modules() if hasattr(m, "get_delta_weight")}
    for name, tensor in network.state_dict().items():
        if ".lora_" in name:
            continue
        layer = name.partition(_BASE)[0]
        whole = tensor.detach()
        if _BASE in name and name.endswith(".weight"):
            whole = whole + adapted[layer].get_delta_weight(_NAME).detach().to(whole)
        state[name.replace(_BASE, ".")] = whole
    plain.load_state_dict(state)
    place = next(iter(state.values()))
    return plain.to(place.device)


def with_merged_network(model: Module) -> Module:
    """A model whose network has adapters, with them merged into weights of its own; eval mode, no gradients."""
    network = model.get_submodule("network")
    return copy.deepcopy(model, {id(network): merged_network(network)}).requires_grad_(False).eval()
