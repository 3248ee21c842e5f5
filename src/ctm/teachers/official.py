"""Official checkpoints' names: what network a state dict is of, and its tensors under our names and back.

    found = recognise(state, image_size=64, head_channels=64, qkv_order="three-heads-dim")
    network = build({"class_path": found.class_path, "init_args": found.init_args})       # ctm.networks.description.build
    network.load_state_dict(from_official(state, network, qkv_order=found.qkv_order))
    state = to_official(network, qkv_order=found.qkv_order)                               # the way back, exact

Three kinds are known: "song" (EDM's SongUNet: DDPM++ and NCSN++), "dhariwal" (EDM's DhariwalUNet), both with or without the
wrapper's prefix `model.` and CTM's s layers, and "adm" (UNetModel of consistency models and of CTM's ImageNet-64 model).
A state dict's dtypes are kept both ways.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from ctm.networks import ADM, DDPMpp, DhariwalUNet
from ctm.networks.unet import UNet
from ctm.teachers.official_adm import adm_entries, recognise_adm
from ctm.teachers.official_edm import edm_entries, edm_filters, recognise_edm
from ctm.teachers.official_edm2 import is_edm2, recognise_edm2
from ctm.teachers.official_names import Entry, OfficialNetwork, QkvOrder, from_our_order, to_our_order

__all__ = ["OfficialNetwork", "QkvOrder", "from_official", "recognise", "to_official"]

WRAPPER = "model."


def recognise(
    state: Mapping[str, Tensor],
    *,
    image_size: int | None = None,
    head_channels: int | None = None,
    qkv_order: QkvOrder | None = None,
    resample_filter: Sequence[float] | None = None,
) -> OfficialNetwork:
    """The kind and the sizes of the network of an official state dict, from names and shapes.

    What names and shapes cannot tell is an argument: image_size (kind "adm"; the EDM kinds tell it), head_channels ("adm"
    and "dhariwal"; "song" has one head), qkv_order ("adm"; the EDM kinds are always "heads-dim-three"), and resample_filter
    if an EDM state dict has lost its filter buffers. An argument that is needed and not given is in the result's `missing`,
    and not in its init_args. Raises ValueError for a state dict of no known kind, or of an unsupported form of a kind."""
    names = _without_wrapper(state)
    if is_edm2(names):
        return recognise_edm2(names, head_channels=head_channels)
    if any(name.startswith("enc.") for name in names) and any(name.startswith("dec.") for name in names):
        return recognise_edm(names, head_channels=head_channels, resample_filter=resample_filter)
    if any(name.startswith("input_blocks.") for name in names):
        return recognise_adm(names, image_size=image_size, head_channels=head_channels, qkv_order=qkv_order)
    raise ValueError(
        "this is the state dict of no network known here: it has neither enc.… and dec.… (EDM's networks) nor input_blocks.… "
        f"(the ADM U-Net); it has {_some(state) or 'no keys at all'}"
    )


def from_official(
    state: Mapping[str, Tensor], network: UNet, *, qkv_order: QkvOrder | None = None
) -> dict[str, Tensor]:
    """The official state dict under our names, for network.load_state_dict.

    qkv_order: the order of the qkv channels in `state`, needed for ADM; the EDM kinds have one order. Filter buffers may be
    absent; if present, they must be the network's. Raises ValueError, naming the keys, if `state` is not of this network."""
    names = _without_wrapper(state)
    entries, filters, order = _layout(network, qkv_order)
    expected = {entry.official for entry in entries}
    missing = [name for name in expected if name not in names]
    unexpected = [name for name in names if name not in expected and name not in filters]
    if missing or unexpected:
        raise ValueError(
            f"these weights are not of this {type(network).__name__}: {_complaint(missing, 'missing')}"
            f"{'; ' if missing and unexpected else ''}{_complaint(unexpected, 'unexpected')}"
        )
    ours = {entry.ours: _inwards(names[entry.official], entry, order) for entry in entries}
    shapes = network.state_dict()
    unlike = [entry.official for entry in entries if ours[entry.ours].shape != shapes[entry.ours].shape]
    unlike += [name for name, kernel in filters.items() if name in names and not _same_filter(names[name], kernel)]
    if unlike:
        raise ValueError(
            f"these weights are not of this {type(network).__name__}: other shape or filter in {_some(unlike)}"
        )
    return ours


def to_official(
    network: UNet,
    state: Mapping[str, Tensor] | None = None,
    *,
    qkv_order: QkvOrder | None = None,
    prefix: str | None = None,
) -> dict[str, Tensor]:
    """The network's state dict under the official names, filters included; or another dict like it (an average, gradients).

    qkv_order: the order in which to write the qkv channels, needed for ADM. prefix: before every name; by default `model.`
    for the EDM kinds and nothing for ADM. Raises ValueError if `state` lacks one of the network's tensors."""
    entries, filters, order = _layout(network, qkv_order)
    ours = network.state_dict() if state is None else state
    missing = [entry.ours for entry in entries if entry.ours not in ours]
    if missing:
        raise ValueError(f"the state dict is not of this {type(network).__name__}: {_complaint(missing, 'missing')}")
    before = prefix if prefix is not None else ("" if isinstance(network, ADM) else WRAPPER)
    official = {before + entry.official: _outwards(ours[entry.ours], entry, order) for entry in entries}
    return official | {before + name: kernel.clone() for name, kernel in filters.items()}


def _layout(network: UNet, qkv_order: QkvOrder | None) -> tuple[list[Entry], dict[str, Tensor], QkvOrder]:
    """The entries, the filter buffers and the qkv order of the network's official form."""
    if isinstance(network, DDPMpp | DhariwalUNet):
        if qkv_order not in (None, "heads-dim-three"):
            raise ValueError(f"EDM's networks have the qkv order heads-dim-three, not {qkv_order}")
        return list(edm_entries(network)), edm_filters(network), "heads-dim-three"
    if isinstance(network, ADM):
        if qkv_order is None:
            raise ValueError(
                "the ADM U-Net's names do not tell the order of its qkv channels: give qkv_order, three-heads-dim for "
                "checkpoints of consistency models and sony/ctm, heads-three-dim for those of ctm-cifar10"
            )
        return list(adm_entries(network)), {}, qkv_order
    raise ValueError(f"{type(network).__name__} has no official form; DDPMpp, NCSNpp, DhariwalUNet and ADM have")


def _inwards(tensor: Tensor, entry: Entry, order: QkvOrder) -> Tensor:
    tensor = tensor.T if entry.transposed else tensor
    return (to_our_order(tensor, entry.heads, order) if entry.heads else tensor).contiguous()


def _outwards(tensor: Tensor, entry: Entry, order: QkvOrder) -> Tensor:
    tensor = from_our_order(tensor, entry.heads, order) if entry.heads else tensor
    return (tensor.T if entry.transposed else tensor).contiguous()


def _without_wrapper(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict without the wrapper's prefix, if all names have it."""
    wrapped = all(name.startswith(WRAPPER) for name in state)
    return {name.removeprefix(WRAPPER) if wrapped else name: tensor for name, tensor in state.items()}


def _same_filter(given: Tensor, kernel: Tensor) -> bool:
    """Whether the filters are equal within the precision of the smaller float format."""
    return given.shape == kernel.shape and torch.allclose(given.double(), kernel.double(), rtol=1e-3, atol=0)


def _complaint(names: Sequence[str], what: str) -> str:
    return f"{what} {'key' if len(names) == 1 else 'keys'} {_some(names)}" if names else ""


def _some(names: Iterable[str], limit: int = 6) -> str:
    """A few of the names in order, and the number of the others."""
    listed = sorted(names)
    more = len(listed) - limit
    return ", ".join(listed[:limit]) + (f" and {more} more" if more > 0 else "")
