"""What a module of diffusers gets to be a student: an s branch, and the guidance scale, beside its time embedding. And what
lets it be traced into a graph."""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from ctm.networks.base import sine_cosine

__all__ = ["add_branches", "free_of_batch_size"]


def add_branches(module: nn.Module, names: list[str]) -> None:
    """Let the time embeddings of a UNet2DModel, UNet2DConditionModel or DiTTransformer2DModel take rows of levels (1 + names, B)
    in place of timesteps (B,). The first row is t. Each further one is embedded by two layers of its own, called NAME_first
    and NAME_second, the second zero. So the module computes what it did, whatever the further rows hold. The tensors that
    were there keep their names."""
    blocks: Any = getattr(module, "transformer_blocks", None)
    places: list[tuple[Any, str]] = [(module, "time_embedding")]
    if blocks is not None:
        places = [(block.norm1.emb, "timestep_embedder") for block in blocks]
    for owner, name in places:
        embedding = getattr(owner, name)
        channels = max(2, embedding.linear_1.in_features // 2 * 2)
        owner.time_proj = _Rows(owner.time_proj, channels)
        setattr(owner, name, _Branches(embedding, channels, names))
    if hasattr(module, "get_time_embed"):  # UNet2DConditionModel would expand the timesteps to (B,)
        module.get_time_embed = MethodType(_embed_rows, module)  # type: ignore[assignment]


def _embed_rows(module: Any, sample: Tensor, timestep: Tensor) -> Tensor:
    return module.time_proj(timestep).to(dtype=sample.dtype)


class _Rows(nn.Module):
    """Features of rows of levels (rows, B): the module's own of the first row, then [sin, cos] of each other."""

    def __init__(self, own: nn.Module, channels: int) -> None:
        super().__init__()
        self.channels = channels
        if isinstance(own, nn.Embedding):
            self.weight = own.weight  # under the name that it had
        else:
            self.own = own

    def forward(self, rows: Tensor) -> Tensor:
        weight = getattr(self, "weight", None)
        first = self.own(rows[0]) if weight is None else nn.functional.embedding(rows[0].long(), weight)
        others = [sine_cosine(row.float(), self.channels) for row in rows[1:]]
        return torch.cat([first, *(other.to(first.dtype) for other in others)], dim=1)


class _Branches(nn.Module):
    """diffusers' TimestepEmbedding, with what further levels add to its second layer's output: nothing, as it starts."""

    def __init__(self, own: nn.Module, channels: int, names: list[str]) -> None:
        super().__init__()
        given: Any = own
        self.linear_1, self.act, self.linear_2, self.post_act = (
            given.linear_1,
            given.act,
            given.linear_2,
            given.post_act,
        )
        self.names, self.channels = names, channels
        out = self.linear_2.out_features
        for name in names:
            setattr(self, f"{name}_first", nn.Linear(channels, out))
            second = nn.Linear(out, out)
            nn.init.zeros_(second.weight)
            nn.init.zeros_(second.bias)
            setattr(self, f"{name}_second", second)

    def forward(self, features: Tensor, condition: Tensor | None = None) -> Tensor:
        own = features.shape[1] - self.channels * len(self.names)
        first, *others = features.split([own, *[self.channels] * len(self.names)], dim=1)
        row = self.linear_2(self.act(self.linear_1(first)))
        for name, other in zip(self.names, others, strict=True):
            hidden = nn.functional.silu(getattr(self, f"{name}_first")(other))
            row = row + getattr(self, f"{name}_second")(hidden)
        return row if self.post_act is None else self.post_act(row)


def free_of_batch_size(module: nn.Module) -> None:
    """Let the upsampling layers of diffusers in a module compute the same without asking how many samples there are, in place. As
    they are, they do from 64 samples on what costs a copy, so that a traced graph would take fewer than 64 only."""
    for part in module.modules():
        if type(part).__name__ == "Upsample2D" and type(part).__module__.startswith("diffusers."):
            part.forward = MethodType(_upsampled, part)


def _upsampled(layer: Any, hidden: Tensor, output_size: Any = None, *_: Any, **__: Any) -> Tensor:
    """Twice the height and width, or output_size, of hidden (B, C, H, W); then the layer's convolution, where it has one."""
    if layer.norm is not None:
        hidden = layer.norm(hidden.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    if layer.use_conv_transpose:
        return layer.conv(hidden)
    if layer.interpolate:
        scale = 2.0 if output_size is None else None
        hidden = nn.functional.interpolate(hidden, size=output_size, scale_factor=scale, mode="nearest")
    if not layer.use_conv:
        return hidden
    return (layer.conv if layer.name == "conv" else layer.Conv2d_0)(hidden)
