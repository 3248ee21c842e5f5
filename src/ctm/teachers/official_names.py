"""What the maps between official names and ours share: entries, and the three orders of the qkv channels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor, nn

from ctm.networks.blocks import Attention

__all__ = [
    "Entry",
    "OfficialNetwork",
    "QkvOrder",
    "attention_heads",
    "from_our_order",
    "module_entries",
    "to_our_order",
]

QkvOrder = Literal["three-heads-dim", "heads-three-dim", "heads-dim-three"]
OUR_ORDER = ("three", "heads", "dim")


@dataclass(frozen=True)
class OfficialNetwork:
    """A network recognised in an official state dict.

    kind: "song", "dhariwal", "adm" or "edm2". class_path and init_args: what `ctm.networks.description.build` takes; complete if
    nothing is missing. qkv_order: of the qkv channels, None if not known. missing: names of arguments of `recognise` that
    are still needed."""

    kind: Literal["song", "dhariwal", "adm", "edm2"]
    class_path: str
    init_args: dict[str, Any] = field(default_factory=dict)
    qkv_order: QkvOrder | None = None
    missing: tuple[str, ...] = ()


@dataclass(frozen=True)
class Entry:
    """The two names of one tensor. heads: of the attention, if this tensor is its qkv, else 0. transposed: ours is (out,
    classes), the official table is (classes, out)."""

    official: str
    ours: str
    heads: int = 0
    transposed: bool = False


def module_entries(
    network: nn.Module, ours: str, official: str, *, heads: int = 0, transposed: bool = False
) -> Iterator[Entry]:
    """The entries of one layer's weight and bias, if it has one; none for a layer that the network does not have."""
    layer: Any = network
    for part in ours.split("."):
        layer = getattr(layer, part, None) if layer is not None else None
    if layer is not None:
        for name, _ in layer.named_parameters():
            yield Entry(f"{official}.{name}", f"{ours}.{name}", heads, transposed)


def attention_heads(network: nn.Module, block: str) -> int:
    """Number of heads of the named residual block's attention, 0 if it has none."""
    attention = getattr(network.get_submodule(block), "attention", None)
    return attention.heads if isinstance(attention, Attention) else 0


def to_our_order(tensor: Tensor, heads: int, order: QkvOrder) -> Tensor:
    """The tensor with its first axis, 3C channels in `order`, rearranged to (three, heads, dim)."""
    axes = order.split("-")
    split = tensor.reshape(*(_sizes(tensor, heads)[axis] for axis in axes), *tensor.shape[1:])
    places = [axes.index(axis) for axis in OUR_ORDER]
    return split.permute(*places, *range(3, split.ndim)).reshape(tensor.shape)


def from_our_order(tensor: Tensor, heads: int, order: QkvOrder) -> Tensor:
    """The inverse of `to_our_order`."""
    axes = order.split("-")
    split = tensor.reshape(*(_sizes(tensor, heads)[axis] for axis in OUR_ORDER), *tensor.shape[1:])
    places = [OUR_ORDER.index(axis) for axis in axes]
    return split.permute(*places, *range(3, split.ndim)).reshape(tensor.shape)


def _sizes(tensor: Tensor, heads: int) -> dict[str, int]:
    return {"three": 3, "heads": heads, "dim": tensor.shape[0] // (3 * heads)}
