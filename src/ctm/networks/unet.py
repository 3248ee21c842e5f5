"""The U-Net around the residual blocks: one way down, a middle, one way up, for every family of networks here."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ctm.conditions import Condition
from ctm.networks.base import GuidanceEmbedding, LabelEmbedding, LevelEmbedding, Network, add_rows
from ctm.networks.blocks import AuxiliaryInput, BlockStyle, ResidualBlock
from ctm.networks.fields import Fields

__all__ = ["UNet"]


class UNet(Network):
    """What DDPMpp, NCSNpp, DhariwalUNet and ADM share: their layers in order, and the way through them.

    A family gives its block style, its widths, where blocks attend, and `_features` and `_rows`, which turn levels and labels
    into what the level embeddings take. Parameter names are the same in all families.
    """

    t_embedding: LevelEmbedding
    s_embedding: LevelEmbedding | None
    label_embedding: LabelEmbedding | None
    augment_embedding: nn.Linear | None
    guidance_embedding: GuidanceEmbedding | None
    conditions: Fields

    def _build(
        self,
        shape: Sequence[int],
        style: BlockStyle,
        *,
        first: int,
        widths: Sequence[int],
        blocks: int,
        attention: Sequence[int],
        head_channels: int | None,
        attend_last_only: bool = False,
        auxiliary: bool = False,
        patch: int = 1,
    ) -> None:
        """The layers. first: width of the first convolution; widths: of the levels, finest first; blocks: a level has on the
        way down, one more on the way up; attention: image heights that attend, on the way up in the last block only where
        attend_last_only says so; head_channels None: one head; auxiliary: NCSN++'s second path down; patch: squares
        of that many pixels become channels before all this, and pixels after it; heights are counted in them.
        Raises ValueError for an image size that the levels do not divide."""
        in_channels, height, width = shape
        out_channels = in_channels * patch**2
        in_channels += self.conditions.channels
        self._check_size(height, width, len(widths), patch)
        in_channels, height = in_channels * patch**2, height // patch
        self.height, self.patch = height, patch

        def block(inputs: int, outputs: int, attends: bool) -> ResidualBlock:
            heads = (1 if head_channels is None else outputs // head_channels) if attends else 0
            return ResidualBlock(inputs, outputs, style, heads)

        self.first = nn.Conv2d(in_channels, first, 3, padding=1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        self.auxiliary = nn.ModuleList() if auxiliary else None
        skips, current, above = [first], first, in_channels
        for level, out in enumerate(widths):
            if level > 0:
                self.down.append(ResidualBlock(current, current, style, how="down"))
                skips.append(current)
                if self.auxiliary is not None:
                    self.auxiliary.append(AuxiliaryInput(above, current, style))
                    above = current
            for _ in range(blocks):
                self.down.append(block(current, out, height >> level in attention))
                current = out
                skips.append(current)
        self.middle = nn.ModuleList([block(current, current, True), block(current, current, False)])
        for level, out in reversed(list(enumerate(widths))):
            if level < len(widths) - 1:
                self.up.append(ResidualBlock(current, current, style, how="up"))
            for index in range(blocks + 1):
                attends = height >> level in attention and (index == blocks or not attend_last_only)
                self.up.append(block(current + skips.pop(), out, attends))
                current = out
        self.norm = style.norm(current)
        self.last = nn.Conv2d(current, out_channels, 3, padding=1)

    def _check_size(self, height: int, width: int, levels: int, patch: int) -> None:
        divisor = patch * 2 ** (levels - 1)
        if height % divisor or width % divisor:
            raise ValueError(
                f"{type(self).__name__} with {levels} levels{f' over patches of {patch}' if patch > 1 else ''} needs image sides "
                f"divisible by {divisor}, got {height}×{width}: use fewer entries in channel_mult or another image size"
            )

    def _zero_own_branches(self) -> None:
        """The s affines and the guidance's row at zero, so that a student copied from a teacher starts as its teacher."""
        if self.guidance_embedding is not None:
            self.guidance_embedding.make_zero()
        for module in self.modules():
            if isinstance(module, ResidualBlock) and module.s_affine is not None:
                nn.init.zeros_(module.s_affine.weight)
                nn.init.zeros_(module.s_affine.bias)

    @property
    def last_layer(self) -> nn.Module:
        return self.last

    def checkpoint_gradients(self) -> None:
        self.checkpointing = True

    def _features(self, level: Tensor) -> Tensor:
        """(B,) noise levels -> (B, ·) features, the family's."""
        raise NotImplementedError

    def _vectors(
        self, t: Tensor, s: Tensor | None, condition: Condition, augment: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """The level vectors of t and s (None without an s branch or without s), with the condition in them and the guidance
        scale in the vector of t."""
        raise NotImplementedError

    def _condition_row(self, condition: Condition, n: int) -> Tensor | None:
        """The rows of the label and of the fields together, (n, ·); None where the network takes neither."""
        label_row = None if self.label_embedding is None else self.label_embedding(condition, n)
        return add_rows(label_row, self.conditions.row(condition, n))

    def _augment_row(self, augment: Tensor | None) -> Tensor | None:
        """(B, augment_dim) -> the row added to the features of t, None without augmentation labels."""
        if self.augment_embedding is None or augment is None:
            return None
        return self.augment_embedding(augment.to(self.augment_embedding.weight.dtype))

    def _guidance_row(self, condition: Condition, t: Tensor) -> Tensor | None:
        """The row of the guidance scale in a condition, added to the features of t; None without a guidance embedding."""
        return None if self.guidance_embedding is None else self.guidance_embedding(condition, t)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        s: Tensor | None = None,
        condition: Condition = None,
        *,
        augment: Tensor | None = None,
    ) -> Tensor:
        """x (B, C, H, W), levels t and s (B,), condition: of the B samples, or None -> like x.

        s is ignored without an s branch, and s = None leaves that branch out. augment: EDM's augmentation labels
        (B, augment_dim), ignored by a network without them; None or zeros: not augmented."""
        t_vector, s_vector = self._vectors(t, s, condition, augment)
        x = self.conditions.beside(x, condition)
        skips = self._descend(x, t_vector, s_vector)
        hidden = skips[-1]
        for block in self.middle:
            hidden = self._block(block, hidden, t_vector, s_vector)
        for block in self.up:
            if block.resample is None:
                hidden = torch.cat([hidden, skips.pop()], dim=1)
            hidden = self._block(block, hidden, t_vector, s_vector)
        return nn.functional.pixel_shuffle(self.last(nn.functional.silu(self.norm(hidden))), self.patch)

    def _descend(self, x: Tensor, t_vector: Tensor, s_vector: Tensor | None) -> list[Tensor]:
        """The way down: what the first convolution and each block give."""
        x = nn.functional.pixel_unshuffle(x, self.patch)
        hidden = self.first(x)
        skips = [hidden]
        auxiliary = iter(self.auxiliary or ())
        above = x
        for block in self.down:
            hidden = self._block(block, hidden, t_vector, s_vector)
            if block.resample is not None and self.auxiliary is not None:
                hidden = above = next(auxiliary)(hidden, above)
            skips.append(hidden)
        return skips

    def encode(self, x: Tensor, t: Tensor, condition: Condition = None) -> list[Tensor]:
        """The last map of each level on the way down, finest first: x (B, C, H, W), already scaled by c_in, at levels t (B,),
        condition as in `forward` -> maps (B, width, h, w)."""
        skips = self._descend(self.conditions.beside(x, condition), *self._vectors(t, None, condition, None))
        after = [skip.shape[-1] for skip in skips[1:]] + [0]
        return [skip for skip, side in zip(skips, after, strict=True) if side != skip.shape[-1]]
