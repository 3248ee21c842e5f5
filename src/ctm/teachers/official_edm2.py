"""Names of EDM2's network (NVlabs/edm2 training/networks_edm2.py: Precond around UNet), and what its pickles say of it. Names of
its tensors are ours, but for `unet.` before them; the channels of qkv are reordered."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from ctm.networks import EDM2
from ctm.networks.edm2 import Block
from ctm.teachers.official_names import OfficialNetwork, to_our_order

__all__ = ["PREFIX", "UNTOLD", "edm2_arguments", "from_edm2", "is_edm2", "recognise_edm2"]

PREFIX = "unet."
_LEFT = ("logvar_fourier.", "logvar_linear.")  # the head that estimates the uncertainty in training
UNTOLD = ("res_balance", "attn_balance", "label_balance", "concat_balance", "clip", "resample_filter")


def is_edm2(state: Mapping[str, Tensor]) -> bool:
    """Whether a state dict has the names of EDM2's network."""
    return "unet.emb_fourier.freqs" in state and any(name.startswith("unet.enc.") for name in state)


def edm2_arguments(network: Mapping[str, Any], blocks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What a pickle's stored network and blocks keep of the arguments that names and shapes do not tell, by our names.

    Raises ValueError where two blocks differ, or a value is none of its kind: our network has one for all."""
    found: dict[str, Any] = {}
    for name in ("label_balance", "concat_balance"):
        _keep(found, name, network.get(name))
    for block in blocks:
        for theirs, ours in (("res_balance",) * 2, ("attn_balance",) * 2, ("clip_act", "clip"), ("dropout",) * 2):
            if theirs in block:
                _keep(found, ours, block[theirs])
        if isinstance(block.get("resample_filter"), list):
            _keep(found, "resample_filter", block["resample_filter"])
    return found


def _keep(found: dict[str, Any], name: str, value: Any) -> None:
    value = float(value) if type(value) in (int, float) else value
    if value is None and name != "clip":
        return
    if name in found and found[name] != value:
        raise ValueError(f"its blocks differ in {name} ({found[name]} and {value}): a network here has one for all")
    found[name] = value


def recognise_edm2(state: Mapping[str, Tensor], *, head_channels: int | None) -> OfficialNetwork:
    """`official.recognise` for EDM2's names. Raises ValueError where its layers are not there."""
    names = {name.removeprefix(PREFIX): value for name, value in state.items()}
    sizes = sorted({int(match[1]) for name in names if (match := re.match(r"enc\.(\d+)x\1_", name))}, reverse=True)
    top = f"{sizes[0]}x{sizes[0]}" if sizes else ""
    needed = [f"enc.{top}_conv.weight", "emb_noise.weight", "out_conv.weight", "out_gain"]
    needed += [f"enc.{size}x{size}_block0.conv_res0.weight" for size in sizes]
    absent = [name for name in needed if name not in names]
    if absent:
        raise ValueError(
            f"this looks like EDM2's network, and these of its layers are missing: {', '.join(absent[:4])}"
        )
    channels, inputs = names[f"enc.{top}_conv.weight"].shape[:2]
    embedding, features = names["emb_noise.weight"].shape
    widths = [names[f"enc.{size}x{size}_block0.conv_res0.weight"].shape[0] for size in sizes]
    if any(width % widths[0] for width in (*widths, embedding, features)):
        raise ValueError(f"this looks like EDM2's network, but its widths {widths} are not multiples of {widths[0]}")
    arguments: dict[str, Any] = {
        "shape": [inputs - 1, sizes[0], sizes[0]],
        "num_classes": names["emb_label.weight"].shape[1] if "emb_label.weight" in names else 0,
        "channels": channels,
        "channel_mult": [width // channels for width in widths],
        "blocks": sum(bool(re.fullmatch(rf"enc\.{top}_block\d+\.conv_res0\.weight", name)) for name in names),
        "attention": [size for size in sizes if f"enc.{size}x{size}_block0.attn_qkv.weight" in names],
        "noise_mult": features // channels,
        "embedding_mult": embedding // channels,
        "s_embedding": False,
    }
    missing = () if head_channels is not None else ("head_channels",)
    arguments |= {} if head_channels is None else {"head_channels": head_channels}
    return OfficialNetwork("edm2", "ctm.networks.EDM2", arguments, "heads-dim-three", missing)


def from_edm2(state: Mapping[str, Tensor], network: EDM2) -> dict[str, Tensor]:
    """The tensors under our names, for network.load_state_dict; the uncertainty head is left away. Raises ValueError, naming
    them, for tensors that are missing, unknown, or of another shape."""
    names = {name.removeprefix(PREFIX): value for name, value in state.items() if not name.startswith(_LEFT)}
    shapes = {name: value.shape for name, value in network.state_dict().items()}
    wrong = sorted(names.keys() ^ shapes.keys())
    wrong += [name for name, value in names.items() if name in shapes and value.shape != shapes[name]]
    if wrong:
        raise ValueError(f"these weights are not of this EDM2 network: {', '.join(wrong[:4])}")
    heads = {
        f"{name}.attn_qkv.weight": block.heads for name, block in network.named_modules() if isinstance(block, Block)
    }
    return {
        name: to_our_order(value, heads[name], "heads-dim-three").contiguous() if name in heads else value
        for name, value in names.items()
    }
