"""DDPM++: the U-Net of Song et al. (arXiv 2011.13456) as EDM uses it for CIFAR-10, with CTM's second level embedding."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ctm.networks.base import LabelEmbedding, LevelEmbedding, Network, add_s

__all__ = ["DDPMpp"]

_SKIP_SCALE = math.sqrt(0.5)


class DDPMpp(Network):
    """F for images (C, H, W) of any channel count; H and W divisible by 2^(levels − 1).

    shape: of one image. num_classes: 0 = no labels. channels: of the finest level. channel_mult: their multiple at each
    level, finest first. blocks: residual blocks a level (one more on the way up). attention: image heights at which blocks
    attend. head_channels: channels of one attention head, None for a single head; blocks narrower than one head do not
    attend. s_embedding: CTM's s branch, or none (a diffusion model). dropout: before each block's second convolution.
    The s branch's affines start at zero: a student copied from a teacher starts as its teacher.
    Raises ValueError for an image size that the levels do not divide.
    """

    def __init__(
        self,
        shape: Sequence[int],
        num_classes: int = 0,
        *,
        channels: int = 128,
        channel_mult: Sequence[int] = (2, 2, 2),
        blocks: int = 4,
        attention: Sequence[int] = (16,),
        head_channels: int | None = None,
        embedding_mult: int = 4,
        s_embedding: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        in_channels, height, width = shape
        divisor = 2 ** (len(channel_mult) - 1)
        if height % divisor or width % divisor:
            raise ValueError(
                f"DDPMpp with {len(channel_mult)} levels needs image sides divisible by {divisor}, got {height}×{width}: "
                "use fewer entries in channel_mult or another image size"
            )
        embedding = channels * embedding_mult
        self.t_embedding = LevelEmbedding(channels, embedding)
        self.s_embedding = LevelEmbedding(channels, embedding) if s_embedding else None
        self.label_embedding = LabelEmbedding(num_classes, channels) if num_classes else None

        def block(inputs: int, outputs: int, attends: bool = False, resample: str | None = None) -> _Block:
            heads = 1 if head_channels is None else outputs // head_channels
            return _Block(inputs, outputs, embedding, s_embedding, heads if attends else 0, resample, dropout)

        self.first = nn.Conv2d(in_channels, channels, 3, padding=1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        widths = [channels]
        current = channels
        for level, mult in enumerate(channel_mult):
            attends = height >> level in attention
            if level > 0:
                self.down.append(block(current, current, resample="down"))
                widths.append(current)
            for _ in range(blocks):
                self.down.append(block(current, channels * mult, attends))
                current = channels * mult
                widths.append(current)
        self.middle = nn.ModuleList([block(current, current, attends=True), block(current, current)])
        for level, mult in reversed(list(enumerate(channel_mult))):
            if level < len(channel_mult) - 1:
                self.up.append(block(current, current, resample="up"))
            for index in range(blocks + 1):
                attends = index == blocks and height >> level in attention
                self.up.append(block(current + widths.pop(), channels * mult, attends))
                current = channels * mult
        self.norm = _group_norm(current)
        self.last = nn.Conv2d(current, in_channels, 3, padding=1)
        self._initialise()

    def _initialise(self) -> None:
        """EDM's: Xavier-uniform weights, zero biases, zero for what closes a residual branch, and zero s affines."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for module in self.modules():
            if isinstance(module, _Block):
                nn.init.zeros_(module.conv_out.weight)
                if module.s_affine is not None:
                    nn.init.zeros_(module.s_affine.weight)
            elif isinstance(module, _Attention):
                nn.init.zeros_(module.out.weight)
        nn.init.zeros_(self.last.weight)

    @property
    def last_layer(self) -> nn.Module:
        return self.last

    def forward(self, x: Tensor, t: Tensor, s: Tensor | None = None, labels: Tensor | None = None) -> Tensor:
        """x (B, C, H, W), levels t and s (B,), labels int64 (B,) or None -> like x. s is ignored without an s branch."""
        label_row = self.label_embedding(labels, len(x)) if self.label_embedding is not None else None
        t_vector = self.t_embedding(t, label_row)
        s_vector = self.s_embedding(s, label_row) if self.s_embedding is not None and s is not None else None
        hidden = self.first(x)
        skips = [hidden]
        for block in self.down:
            hidden = block(hidden, t_vector, s_vector)
            skips.append(hidden)
        for block in self.middle:
            hidden = block(hidden, t_vector, s_vector)
        for block in self.up:
            if block.resample is None:
                hidden = torch.cat([hidden, skips.pop()], dim=1)
            hidden = block(hidden, t_vector, s_vector)
        return self.last(nn.functional.silu(self.norm(hidden)))


def _group_norm(channels: int) -> nn.GroupNorm:
    """Groups of at least 4 channels, at most 32 groups."""
    return nn.GroupNorm(min(32, channels // 4), channels, eps=1e-6)


def _resample(x: Tensor, how: str | None) -> Tensor:
    """Half the size by averaging 2×2, or twice by repeating: EDM's filter [1, 1]."""
    if how == "down":
        return nn.functional.avg_pool2d(x, 2)
    if how == "up":
        return nn.functional.interpolate(x, scale_factor=2, mode="nearest")
    return x


class _Block(nn.Module):
    """Residual block: norm, SiLU, (resample), convolution; plus the levels' affine; norm, SiLU, dropout, convolution; the
    sum with the shortcut is scaled by √½; then, where heads > 0, attention."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        embedding: int,
        s_embedding: bool,
        heads: int,
        resample: str | None,
        dropout: float,
    ) -> None:
        super().__init__()
        self.resample = resample
        self.norm_in = _group_norm(inputs)
        self.conv_in = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.t_affine = nn.Linear(embedding, outputs)
        self.s_affine = nn.Linear(embedding, outputs) if s_embedding else None
        self.norm_out = _group_norm(outputs)
        self.dropout = nn.Dropout(dropout)
        self.conv_out = nn.Conv2d(outputs, outputs, 3, padding=1)
        projects = inputs != outputs or resample is not None
        self.shortcut = nn.Conv2d(inputs, outputs, 1) if projects else None
        self.attention = _Attention(outputs, heads) if heads else None

    def forward(self, x: Tensor, t_vector: Tensor, s_vector: Tensor | None) -> Tensor:
        hidden = self.conv_in(_resample(nn.functional.silu(self.norm_in(x)), self.resample))
        hidden = hidden + add_s(self.t_affine(t_vector), self.s_affine, s_vector)[:, :, None, None]
        hidden = self.conv_out(self.dropout(nn.functional.silu(self.norm_out(hidden))))
        straight = _resample(x, self.resample)
        hidden = (hidden + (straight if self.shortcut is None else self.shortcut(straight))) * _SKIP_SCALE
        return hidden if self.attention is None else self.attention(hidden)


class _Attention(nn.Module):
    """Self-attention over pixels with a residual, scaled by √½. The qkv channels are ordered (three, heads, dim)."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = _group_norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        n, channels, height, width = x.shape
        qkv = self.qkv(self.norm(x)).reshape(n, 3, self.heads, channels // self.heads, height * width)
        q, k, v = qkv.transpose(-1, -2).unbind(1)
        attended = nn.functional.scaled_dot_product_attention(q, k, v)
        return (self.out(attended.transpose(-1, -2).reshape(x.shape)) + x) * _SKIP_SCALE
