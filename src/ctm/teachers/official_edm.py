"""Names of EDM's networks (NVlabs/edm training/networks.py: SongUNet, DhariwalUNet) and of CTM's forms of them (sony/ctm
cm/networks.py), which add layers whose names end in `_s`. Names here are without the wrapper's `model.`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from ctm.networks import DDPMpp, DhariwalUNet
from ctm.networks.blocks import Resample
from ctm.teachers.official_names import Entry, OfficialNetwork, attention_heads, module_entries

__all__ = ["edm_entries", "edm_filters", "recognise_edm"]

_BLOCK = {
    "norm_in": "norm0",
    "conv_in": "conv0",
    "t_affine": "affine",
    "s_affine": "affine_s",
    "norm_out": "norm1",
    "conv_out": "conv1",
    "shortcut": "skip",
    "attention.norm": "norm2",
    "attention.qkv": "qkv",
    "attention.out": "proj",
}
_MAPPING = {
    "label_embedding.linear": "map_label",
    "augment_embedding": "map_augment",
    "t_embedding.first": "map_layer0",
    "t_embedding.second": "map_layer1",
    "s_embedding.first": "map_layer0_s",
    "s_embedding.second": "map_layer1_s",
}

EDMNetwork = DDPMpp | DhariwalUNet


def edm_entries(network: EDMNetwork) -> Iterator[Entry]:
    """Both names of every tensor of the network that holds parameters or frequencies."""
    if getattr(network, "fourier", None) is not None:
        yield Entry("map_noise.freqs", "fourier.frequencies")
    for ours, official in _MAPPING.items():
        yield from module_entries(network, ours, official)
    top = f"{network.height}x{network.height}"
    yield from module_entries(network, "first", f"enc.{top}_conv")
    for ours, official in _blocks(network):
        for our_part, part in _BLOCK.items():
            heads = attention_heads(network, ours) if our_part == "attention.qkv" else 0
            yield from module_entries(network, f"{ours}.{our_part}", f"{official}.{part}", heads=heads)
    for ours, official in _auxiliary(network):
        yield from module_entries(network, f"{ours}.conv", official)
    song = isinstance(network, DDPMpp)
    yield from module_entries(network, "norm", f"dec.{top}_aux_norm" if song else "out_norm")
    yield from module_entries(network, "last", f"dec.{top}_aux_conv" if song else "out_conv")


def edm_filters(network: EDMNetwork) -> dict[str, Tensor]:
    """The filter buffers f⊗f/(Σf)² of shape (1, 1, k, k). Official state dicts have them, ours do not."""
    filters = {}
    for ours, official in _blocks(network):
        resample = network.get_submodule(ours).resample
        if isinstance(resample, Resample):
            for part in ("conv0", "skip"):
                filters[f"{official}.{part}.resample_filter"] = _kernel(resample)
    for ours, official in _auxiliary(network):
        resample = network.get_submodule(f"{ours}.resample")
        assert isinstance(resample, Resample)
        filters[f"{official}.resample_filter"] = _kernel(resample)
    return filters


def _kernel(resample: Resample) -> Tensor:
    taps = torch.tensor(resample.resample_filter, dtype=torch.float64)
    return (torch.outer(taps, taps) / taps.sum() ** 2).float()[None, None]


def _blocks(network: EDMNetwork) -> Iterator[tuple[str, str]]:
    """Our name and the official name of every residual block. Official numbers count within a resolution."""
    size, index = network.height, 0
    for number, block in enumerate(network.down):
        if block.resample is None:
            yield f"down.{number}", f"enc.{size}x{size}_block{index}"
            index += 1
        else:
            size, index = size // 2, 0
            yield f"down.{number}", f"enc.{size}x{size}_down"
    for number in range(len(network.middle)):
        yield f"middle.{number}", f"dec.{size}x{size}_in{number}"
    index = 0
    for number, block in enumerate(network.up):
        if block.resample is None:
            yield f"up.{number}", f"dec.{size}x{size}_block{index}"
            index += 1
        else:
            size, index = size * 2, 0
            yield f"up.{number}", f"dec.{size}x{size}_up"


def _auxiliary(network: EDMNetwork) -> Iterator[tuple[str, str]]:
    for number in range(len(network.auxiliary or ())):
        size = network.height >> (number + 1)
        yield f"auxiliary.{number}", f"enc.{size}x{size}_aux_residual"


def recognise_edm(
    state: Mapping[str, Tensor], *, head_channels: int | None, resample_filter: Sequence[float] | None
) -> OfficialNetwork:
    """`official.recognise` for names with enc.… and dec.…"""
    sizes = sorted({int(match[1]) for name in state if (match := re.match(r"enc\.(\d+)x\1_", name))}, reverse=True)
    top = f"{sizes[0]}x{sizes[0]}" if sizes else ""
    blocks = sum(bool(re.fullmatch(rf"enc\.{top}_block\d+\.conv0\.weight", name)) for name in state)
    needed = [f"enc.{top}_conv.weight", "map_layer0.weight"]
    needed += [f"enc.{size}x{size}_block0.conv0.weight" for size in sizes]
    absent = [name for name in needed if name not in state]
    song = f"dec.{top}_aux_conv.weight" in state
    if absent or not (song or "out_conv.weight" in state) or any("_aux_skip" in name for name in state):
        raise ValueError(
            "this looks like one of EDM's networks, in a form not supported here: it needs "
            f"{', '.join([*needed, f'dec.{top}_aux_conv.weight or out_conv.weight'])}, and no “skip” encoder"
        )
    embedding, features = state["map_layer0.weight"].shape
    first, in_channels = state[f"enc.{top}_conv.weight"].shape[:2]
    channels = first if song else features
    widths = [state[f"enc.{size}x{size}_block0.conv0.weight"].shape[0] for size in sizes]
    if embedding % channels or features % channels or any(width % channels for width in widths):
        raise ValueError(
            f"this looks like one of EDM's networks, but its level vector of {embedding}, features of {features} and widths "
            f"{widths} are not multiples of its {channels} channels"
        )
    arguments: dict[str, object] = {
        "shape": [in_channels, sizes[0], sizes[0]],
        "num_classes": state["map_label.weight"].shape[1] if "map_label.weight" in state else 0,
        "channels": channels,
        "channel_mult": [width // channels for width in widths],
        "blocks": blocks,
        "attention": [size for size in sizes if f"enc.{size}x{size}_block0.qkv.weight" in state],
        "embedding_mult": embedding // channels,
        "s_embedding": "map_layer0_s.weight" in state,
        "augment_dim": state["map_augment.weight"].shape[1] if "map_augment.weight" in state else 0,
    }
    missing: list[str] = []
    taps = _filter(state) or resample_filter
    if taps is not None:
        arguments["resample_filter"] = list(taps)
    elif len(sizes) > 1:
        missing.append("resample_filter")
    if song:
        return _song(state, arguments, features // channels, missing)
    if head_channels is not None:
        arguments["head_channels"] = head_channels
    else:
        missing.append("head_channels")
    return OfficialNetwork("dhariwal", "ctm.networks.DhariwalUNet", arguments, "heads-dim-three", tuple(missing))


def _song(
    state: Mapping[str, Tensor], arguments: dict[str, object], features_mult: int, missing: Sequence[str]
) -> OfficialNetwork:
    """DDPM++ or NCSN++. A mixture of the two is a DDPMpp with the settings that say so."""
    fourier, residual = "map_noise.freqs" in state, any("_aux_residual" in name for name in state)
    arguments["features_mult"] = features_mult
    name = "NCSNpp" if fourier and residual else "DDPMpp"
    if name == "DDPMpp":
        arguments["level_features"] = "fourier" if fourier else "positional"
        arguments["encoder"] = "residual" if residual else "standard"
    return OfficialNetwork("song", f"ctm.networks.{name}", arguments, "heads-dim-three", tuple(missing))


def _filter(state: Mapping[str, Tensor]) -> list[float] | None:
    """One axis of the state dict's filter, with its smallest entry 1; None if no buffer is left."""
    kernel = next((tensor for name, tensor in state.items() if name.endswith("resample_filter")), None)
    if kernel is None:
        return None
    axis = kernel.double().squeeze().sum(dim=0)
    taps = axis / axis.abs()[axis != 0].min()
    return [round(tap) if abs(tap - round(tap)) < 1e-3 else tap for tap in taps.tolist()]
