"""The parts of every U-Net here: group norm, resampling by a fixed filter, self-attention, the residual block.

One block serves DDPM++, NCSN++ and both ADM networks; `BlockStyle` holds what distinguishes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ctm.networks.base import add_s

__all__ = ["Attention", "AuxiliaryInput", "BlockStyle", "Resample", "ResidualBlock"]

How = Literal["down", "up"]


@dataclass(frozen=True)
class BlockStyle:
    """What distinguishes the residual blocks of one family of networks from another's.

    embedding: size of the level vectors. s_embedding: whether blocks have an affine for s. scale_shift: the affines give
    (scale, shift) applied after the second norm; else one number a channel, added before it. skip_scale: factor on each sum
    with a shortcut. group_channels: channels of a group at least, of which there are 32 at most. eps: of the norms.
    project_resampled: a 1×1 convolution in the shortcut of every resampling block, not only where the width changes.
    resample_filter: one axis of the resampling filter. dropout: before the second convolution.
    """

    embedding: int
    s_embedding: bool
    scale_shift: bool
    skip_scale: float
    group_channels: int
    eps: float
    project_resampled: bool
    resample_filter: Sequence[float] = (1, 1)
    dropout: float = 0.0

    def norm(self, channels: int) -> nn.GroupNorm:
        """The family's group norm of this many channels."""
        return nn.GroupNorm(min(32, channels // self.group_channels), channels, eps=self.eps)


class Resample(nn.Module):
    """Half or twice the size by a separable filter f⊗f/(Σf)², as EDM: f = [1, 1] is averaging 2×2 and repeating pixels.

    Any other f is one strided depthwise convolution (transposed and times 4 on the way up). padding: of the image on the
    way down, (len f − 1)//2 unless an earlier convolution has already widened it.
    """

    kernel: Tensor | None

    def __init__(self, how: How, resample_filter: Sequence[float], padding: int | None = None) -> None:
        super().__init__()
        if len(resample_filter) % 2:
            raise ValueError(f"resample_filter needs an even number of entries, got {list(resample_filter)}")
        self.how = how
        self.resample_filter = tuple(resample_filter)
        self.padding = (len(resample_filter) - 1) // 2 if padding is None else padding
        self.pools = len(resample_filter) == 2 and resample_filter[0] == resample_filter[1] and self.padding == 0
        kernel = None
        if not self.pools:
            taps = torch.as_tensor(self.resample_filter, dtype=torch.float64)
            kernel = (torch.outer(taps, taps) / taps.sum() ** 2 * (4 if how == "up" else 1)).float()[None, None]
        self.register_buffer("kernel", kernel, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H/2, W/2) or (B, C, 2H, 2W)."""
        if self.kernel is None:
            if self.how == "down":
                return nn.functional.avg_pool2d(x, 2)
            return nn.functional.interpolate(x, scale_factor=2, mode="nearest")
        channels = x.shape[1]
        kernel = self.kernel.to(x.dtype).expand(channels, 1, -1, -1)
        convolve = nn.functional.conv2d if self.how == "down" else nn.functional.conv_transpose2d
        return convolve(x, kernel, stride=2, padding=self.padding, groups=channels)


class Attention(nn.Module):
    """Self-attention over pixels with a residual, times skip_scale. The qkv channels are ordered (three, heads, dim)."""

    def __init__(self, channels: int, heads: int, style: BlockStyle) -> None:
        super().__init__()
        if channels % heads:
            raise ValueError(f"{heads} attention heads do not divide {channels} channels: use another head_channels")
        self.heads = heads
        self.skip_scale = style.skip_scale
        self.norm = style.norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape."""
        n, channels, height, width = x.shape
        qkv = self.qkv(self.norm(x)).reshape(n, 3, self.heads, channels // self.heads, height * width)
        rows = qkv.transpose(-1, -2)
        if (
            rows.stride(-1) != 1
        ):  # the fused kernels take no others; images that are channels_last have such rows already
            rows = rows.contiguous()
        attended = nn.functional.scaled_dot_product_attention(*rows.unbind(1))
        return (self.out(attended.transpose(-1, -2).reshape(x.shape)) + x) * self.skip_scale


class ResidualBlock(nn.Module):
    """Norm, SiLU, (resample), convolution; norm with the levels' affines, SiLU, dropout, convolution; the sum with the
    shortcut times skip_scale; then, where heads > 0, attention."""

    def __init__(self, inputs: int, outputs: int, style: BlockStyle, heads: int = 0, how: How | None = None) -> None:
        super().__init__()
        self.scale_shift, self.skip_scale = style.scale_shift, style.skip_scale
        affine = outputs * (2 if style.scale_shift else 1)
        self.resample = None if how is None else Resample(how, style.resample_filter)
        self.norm_in = style.norm(inputs)
        self.conv_in = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.t_affine = nn.Linear(style.embedding, affine)
        self.s_affine = nn.Linear(style.embedding, affine) if style.s_embedding else None
        self.norm_out = style.norm(outputs)
        self.dropout = nn.Dropout(style.dropout)
        self.conv_out = nn.Conv2d(outputs, outputs, 3, padding=1)
        projects = inputs != outputs or (how is not None and style.project_resampled)
        self.shortcut = nn.Conv2d(inputs, outputs, 1) if projects else None
        self.attention = Attention(outputs, heads, style) if heads else None

    def forward(self, x: Tensor, t_vector: Tensor, s_vector: Tensor | None) -> Tensor:
        """x (B, inputs, H, W), level vectors (B, embedding) -> (B, outputs, …)."""
        hidden, straight = nn.functional.silu(self.norm_in(x)), x
        if self.resample is not None:
            hidden, straight = self.resample(hidden), self.resample(x)
        hidden = self.conv_in(hidden)
        affine = add_s(self.t_affine(t_vector), self.s_affine, s_vector)[:, :, None, None]
        if self.scale_shift:
            scale, shift = affine.chunk(2, dim=1)
            hidden = torch.addcmul(shift, self.norm_out(hidden), 1 + scale)
        else:
            hidden = self.norm_out(hidden + affine)
        hidden = self.conv_out(self.dropout(nn.functional.silu(hidden)))
        hidden = (hidden + (straight if self.shortcut is None else self.shortcut(straight))) * self.skip_scale
        return hidden if self.attention is None else self.attention(hidden)


class AuxiliaryInput(nn.Module):
    """NCSN++'s second path down: a convolution and the filter bring the level above to this level's size and width, and
    the mean of the two, kept at unit variance, goes on (EDM's "residual" encoder)."""

    def __init__(self, inputs: int, outputs: int, style: BlockStyle) -> None:
        super().__init__()
        widening = (len(style.resample_filter) - 1) // 2
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=1 + widening)
        self.resample = Resample("down", style.resample_filter, padding=0)
        self.skip_scale = style.skip_scale

    def forward(self, hidden: Tensor, above: Tensor) -> Tensor:
        """hidden (B, outputs, H, W), above (B, inputs, 2H, 2W) -> (B, outputs, H, W)."""
        return (hidden + self.resample(self.conv(above))) * self.skip_scale
