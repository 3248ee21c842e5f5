"""What a module of diffusers gets to be a student: an s branch, and the guidance scale, beside its time embedding."""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from ctm.networks.base import sine_cosine

__all__ = ["add_branches", "take_any_batch"]


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


def take_any_batch(module: nn.Module) -> None:
    """Let the Upsample2D modules inside compute the same without looking at the number of rows, so that a graph that is traced of
    them takes any number: diffusers' own forward asks whether it is 64 or more, for the sake of a memory layout."""
    for part in module.modules():
        if type(part).__name__ == "Upsample2D":
            owner: Any = part
            owner.forward = MethodType(_upsampled, part)


def _upsampled(part: Any, hidden: Tensor, output_size: Any = None, *_: Any, **__: Any) -> Tensor:
    if part.norm is not None:
        hidden = part.norm(hidden.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    convolution = part.conv if part.name == "conv" else part.Conv2d_0
    if part.use_conv_transpose:
        return convolution(hidden)
    if part.interpolate:
        size = {"scale_factor": 2.0} if output_size is None else {"size": output_size}
        hidden = nn.functional.interpolate(hidden.contiguous(), mode="nearest", **size)
    return convolution(hidden) if part.use_conv else hidden
