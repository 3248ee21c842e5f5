"""Names of the ADM U-Net: UNetModel of openai/consistency_models (cm/unet.py) and of sony/ctm (cm/unet.py), which adds
`time_embed_s` and `emb_layers_s`. The supported form has scale-shift norms and resampling residual blocks, as both have."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from torch import Tensor

from ctm.networks import ADM
from ctm.teachers.official_names import Entry, OfficialNetwork, QkvOrder, attention_heads, module_entries

__all__ = ["adm_entries", "recognise_adm"]

_BLOCK = {
    "norm_in": "in_layers.0",
    "conv_in": "in_layers.2",
    "t_affine": "emb_layers.1",
    "s_affine": "emb_layers_s.1",
    "norm_out": "out_layers.0",
    "conv_out": "out_layers.3",
    "shortcut": "skip_connection",
}
_ATTENTION = {"attention.norm": "norm", "attention.qkv": "qkv", "attention.out": "proj_out"}
_REST = {
    "t_embedding.first": "time_embed.0",
    "t_embedding.second": "time_embed.2",
    "s_embedding.first": "time_embed_s.0",
    "s_embedding.second": "time_embed_s.2",
    "first": "input_blocks.0.0",
    "norm": "out.0",
    "last": "out.2",
}


def adm_entries(network: ADM) -> Iterator[Entry]:
    """Both names of every tensor of the network."""
    for ours, official in _REST.items():
        yield from module_entries(network, ours, official)
    if network.label_embedding is not None:
        yield Entry("label_emb.weight", "label_embedding.linear.weight", transposed=True)
    for ours, residual, attending in _blocks(network):
        for our_part, part in _BLOCK.items():
            yield from module_entries(network, f"{ours}.{our_part}", f"{residual}.{part}")
        for our_part, part in _ATTENTION.items():
            heads = attention_heads(network, ours) if part == "qkv" else 0
            yield from module_entries(network, f"{ours}.{our_part}", f"{attending}.{part}", heads=heads)


def _blocks(network: ADM) -> Iterator[tuple[str, str, str]]:
    """Our name of every block, and the official names of its residual part and its attention part.

    An official group holds a residual block, its attention, and, on the way up, the resampling block that follows."""
    for number in range(len(network.down)):
        yield f"down.{number}", f"input_blocks.{number + 1}.0", f"input_blocks.{number + 1}.1"
    yield "middle.0", "middle_block.0", "middle_block.1"
    yield "middle.1", "middle_block.2", "middle_block.1"
    group, members = -1, 0
    for number, block in enumerate(network.up):
        if block.resample is None:
            group, members = group + 1, 1 if block.attention is None else 2
            yield f"up.{number}", f"output_blocks.{group}.0", f"output_blocks.{group}.1"
        else:
            yield f"up.{number}", f"output_blocks.{group}.{members}", ""


def recognise_adm(
    state: Mapping[str, Tensor], *, image_size: int | None, head_channels: int | None, qkv_order: QkvOrder | None
) -> OfficialNetwork:
    """`official.recognise` for names with input_blocks.…"""
    needed = ["time_embed.0.weight", "input_blocks.0.0.weight", "out.2.weight", "input_blocks.1.0.emb_layers.1.weight"]
    absent = [name for name in needed if name not in state]
    if absent:
        raise ValueError(f"this looks like the ADM U-Net, but it lacks {', '.join(absent)}")
    embedding, channels = state["time_embed.0.weight"].shape
    first, in_channels = state["input_blocks.0.0.weight"].shape[:2]
    _refuse_other_forms(state, in_channels)
    groups = 1 + max((int(m[1]) for name in state if (m := re.match(r"output_blocks\.(\d+)\.", name))), default=-1)
    ends = [int(m[1]) for name in state if (m := re.match(r"output_blocks\.(\d+)\.[12]\.in_layers\.0\.weight", name))]
    per_level = 1 + min(ends, default=groups - 1)  # one more than the blocks of a level on the way down
    starts = range(1, groups, max(per_level, 1))
    entrances = [state.get(f"input_blocks.{start}.0.in_layers.2.weight") for start in starts]
    widths = [0 if entrance is None else len(entrance) for entrance in entrances]
    if not groups or groups % per_level or 0 in widths or widths[:1] != [first] or embedding % channels:
        raise ValueError(
            f"this looks like the ADM U-Net, but {groups} groups on the way up, {per_level} a level, widths {widths} and "
            f"{channels} channels do not make one"
        )
    attends = [level for level, start in enumerate(starts) if f"input_blocks.{start}.1.qkv.weight" in state]
    arguments: dict[str, object] = {
        "num_classes": state["label_emb.weight"].shape[0] if "label_emb.weight" in state else 0,
        "channels": channels,
        "channel_mult": [w // channels if w % channels == 0 else w / channels for w in widths],
        "blocks": per_level - 1,
        "embedding_mult": embedding // channels,
        "s_embedding": "time_embed_s.0.weight" in state,
    }
    if image_size is not None:
        arguments["shape"] = [in_channels, image_size, image_size]
        arguments["attention"] = [image_size >> level for level in attends]
    if head_channels is not None:
        arguments["head_channels"] = head_channels
    given = {"image_size": image_size, "head_channels": head_channels, "qkv_order": qkv_order}
    missing = tuple(name for name, value in given.items() if value is None)
    return OfficialNetwork("adm", "ctm.networks.ADM", arguments, qkv_order, missing)


def _refuse_other_forms(state: Mapping[str, Tensor], in_channels: int) -> None:
    """Raises ValueError for forms of UNetModel that neither consistency models nor CTM released."""
    rows = state["input_blocks.1.0.emb_layers.1.weight"].shape[0]
    width = (
        state["input_blocks.1.0.out_layers.0.weight"].shape[0] if "input_blocks.1.0.out_layers.0.weight" in state else 0
    )
    reasons = {
        "it resamples by learned convolutions": any(re.search(r"\.(op|conv)\.weight$", name) for name in state),
        "it has no scale-shift norms": rows != 2 * width,
        f"it gives {state['out.2.weight'].shape[0]} channels for {in_channels}": state["out.2.weight"].shape[0]
        != in_channels,
    }
    found = [reason for reason, holds in reasons.items() if holds]
    if found:
        raise ValueError(f"this looks like an ADM U-Net in a form not supported here: {' and '.join(found)}")
