"""A U-Net over sequences with FiLM conditions, as diffusion policies use it (arXiv 2303.04137), with CTM's s branch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ctm.conditions import Condition
from ctm.networks.base import add_s
from ctm.networks.fields import Shapes
from ctm.networks.vectors import VectorNetwork

__all__ = ["UNet1d"]


class UNet1d(VectorNetwork):
    """F for sequences (C, L): convolutions along L, channels scaled and shifted by the vectors of t, s and condition (FiLM).

    shape: (C, L) of one sample, L divisible by 2^(levels − 1). num_classes: 0 = no labels. channels: of the finest level.
    channel_mult: their multiple at each level, finest first. blocks: residual blocks a level, down and up. kernel: steps that a
    convolution sees, odd. embedding: size of the level vectors. s_embedding: CTM's s branch, or none (a diffusion model).
    guidance_embedding: whether the guidance scale is an input. dropout: before each block's second convolution. arrays: the
    fields of a condition beside labels, as of `ctm.networks.fields.Fields`: vectors such as observations become FiLM, fields of
    the sample's own length are channels beside it.
    What comes from s and the last layer start at zero: a student copied from a teacher starts as its teacher.
    Raises ValueError for another shape, a length that the levels do not divide, and an even kernel.
    """

    def __init__(
        self,
        shape: Sequence[int],
        num_classes: int = 0,
        *,
        channels: int = 64,
        channel_mult: Sequence[int] = (1, 2, 4),
        blocks: int = 2,
        kernel: int = 5,
        embedding: int = 256,
        s_embedding: bool = True,
        guidance_embedding: bool = False,
        dropout: float = 0.0,
        arrays: Shapes | None = None,
    ) -> None:
        super().__init__()
        inputs, _ = _checked(shape, len(channel_mult), kernel)
        self._build_vectors(
            shape, num_classes, embedding, arrays, s_embedding=s_embedding, guidance_embedding=guidance_embedding
        )

        def block(before: int, after: int) -> _Block:
            return _Block(before, after, kernel, embedding, s_embedding, dropout)

        widths = [channels * mult for mult in channel_mult]
        self.first = nn.Conv1d(inputs + self.conditions.channels, widths[0], kernel, padding=kernel // 2)
        self.down, self.shrink = nn.ModuleList(), nn.ModuleList()
        current = widths[0]
        for level, width in enumerate(widths):
            if level > 0:
                self.shrink.append(nn.Conv1d(current, current, 3, stride=2, padding=1))
            self.down.append(nn.ModuleList(block(current if i == 0 else width, width) for i in range(blocks)))
            current = width
        self.middle = nn.ModuleList([block(current, current), block(current, current)])
        self.up, self.grow = nn.ModuleList(), nn.ModuleList()
        for level, width in reversed(list(enumerate(widths))):
            if level < len(widths) - 1:
                self.grow.append(nn.Conv1d(current, width, 3, padding=1))
                current = width
            self.up.append(nn.ModuleList(block(current + width if i == 0 else width, width) for i in range(blocks)))
            current = width
        self.norm = _norm(current)
        self.last = nn.Conv1d(current, inputs, 1)
        self._zero()

    def _zero(self) -> None:
        for module in (self.last, *(m.s_affine for m in self.modules() if isinstance(m, _Block)), *self._closing()):
            if module is not None:
                nn.init.zeros_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        if self.guidance_embedding is not None:
            self.guidance_embedding.make_zero()

    def _closing(self) -> list[nn.Conv1d]:
        """The convolutions that end residual branches."""
        return [module.conv_out for module in self.modules() if isinstance(module, _Block)]

    @property
    def last_layer(self) -> nn.Module:
        return self.last

    def forward(self, x: Tensor, t: Tensor, s: Tensor | None = None, condition: Condition = None) -> Tensor:
        """x (B, C, L), levels t and s (B,), condition: of the B samples, or None -> like x. s is ignored without an s branch,
        and s = None leaves that branch out."""
        t_vector, s_vector = self._vectors(t, s, condition)
        skips = self._descend(x, t_vector, s_vector, condition)
        hidden = skips[-1]
        hidden = _through(self.middle, hidden, t_vector, s_vector)
        for level in range(len(self.up)):
            if level > 0:
                hidden = self.grow[level - 1](nn.functional.interpolate(hidden, scale_factor=2.0, mode="nearest"))
            hidden = torch.cat([hidden, skips.pop()], dim=1)
            hidden = _through(self.up[level], hidden, t_vector, s_vector)
        return self.last(nn.functional.silu(self.norm(hidden)))

    def _descend(self, x: Tensor, t_vector: Tensor, s_vector: Tensor | None, condition: Condition) -> list[Tensor]:
        """The last map of each level on the way down."""
        hidden = self.first(self.conditions.beside(x, condition))
        skips = []
        for level in range(len(self.down)):
            if level > 0:
                hidden = self.shrink[level - 1](hidden)
            hidden = _through(self.down[level], hidden, t_vector, s_vector)
            skips.append(hidden)
        return skips

    def encode(self, x: Tensor, t: Tensor, condition: Condition = None) -> list[Tensor]:
        """The last map of each level on the way down, finest first: x (B, C, L), already scaled by c_in, at levels t (B,),
        condition as in `forward` -> maps (B, width, l, 1)."""
        vectors = self._vectors(t, None, condition)
        return [found[..., None] for found in self._descend(x, *vectors, condition)]


def _through(blocks: nn.Module, hidden: Tensor, t_vector: Tensor, s_vector: Tensor | None) -> Tensor:
    """One block after the other."""
    for block in blocks.children():
        hidden = block(hidden, t_vector, s_vector)
    return hidden


class _Block(nn.Module):
    """Norm, SiLU, convolution; norm, FiLM, SiLU, dropout, convolution; the sum with the shortcut."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, embedding: int, s_embedding: bool, dropout: float
    ) -> None:
        super().__init__()
        self.norm_in = _norm(inputs)
        self.conv_in = nn.Conv1d(inputs, outputs, kernel, padding=kernel // 2)
        self.t_affine = nn.Linear(embedding, 2 * outputs)
        self.s_affine = nn.Linear(embedding, 2 * outputs) if s_embedding else None
        self.norm_out = _norm(outputs)
        self.dropout = nn.Dropout(dropout)
        self.conv_out = nn.Conv1d(outputs, outputs, kernel, padding=kernel // 2)
        self.shortcut = nn.Conv1d(inputs, outputs, 1) if inputs != outputs else None

    def forward(self, x: Tensor, t_vector: Tensor, s_vector: Tensor | None) -> Tensor:
        """x (B, inputs, L), level vectors (B, embedding) -> (B, outputs, L)."""
        hidden = self.conv_in(nn.functional.silu(self.norm_in(x)))
        scale, shift = add_s(self.t_affine(t_vector), self.s_affine, s_vector)[..., None].chunk(2, dim=1)
        hidden = self.norm_out(hidden) * (1 + scale) + shift
        hidden = self.conv_out(self.dropout(nn.functional.silu(hidden)))
        return hidden + (x if self.shortcut is None else self.shortcut(x))


def _norm(channels: int) -> nn.GroupNorm:
    """Eight groups, or as many of at most eight as divide the channels."""
    return nn.GroupNorm(next(groups for groups in range(8, 0, -1) if channels % groups == 0), channels)


def _checked(shape: Sequence[int], levels: int, kernel: int) -> tuple[int, int]:
    if len(shape) != 2:
        raise ValueError(
            f"UNet1d takes sequences (C, L), got shape {list(shape)}: use DDPMpp for images, MLP for vectors"
        )
    channels, length = shape
    divisor = 2 ** (levels - 1)
    if length % divisor:
        raise ValueError(
            f"UNet1d with {levels} levels needs a length divisible by {divisor}, got {length}: use fewer entries in channel_mult "
            "or another length"
        )
    if kernel % 2 == 0:
        raise ValueError(f"UNet1d needs an odd kernel, which keeps the length, got {kernel}")
    return channels, length
