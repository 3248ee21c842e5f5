"""DDPM++ and NCSN++: the U-Nets of Song et al. (arXiv 2011.13456) as EDM (arXiv 2206.00364) builds them for CIFAR-10, with
CTM's second level embedding (arXiv 2310.02279)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from ctm.conditions import Condition
from ctm.networks.base import (
    FourierFeatures,
    GuidanceEmbedding,
    LabelEmbedding,
    LevelEmbedding,
    add_rows,
    song_features,
)
from ctm.networks.blocks import Attention, BlockStyle, ResidualBlock
from ctm.networks.fields import Fields, Shapes
from ctm.networks.unet import UNet

__all__ = ["DDPMpp", "NCSNpp"]


class DDPMpp(UNet):
    """F for images (C, H, W) of any channel count; H and W divisible by 2^(levels − 1).

    shape: of one image. num_classes: 0 = no labels. channels: of the finest level. channel_mult: their multiple at each
    level, finest first. blocks: residual blocks a level (one more on the way up). attention: image heights at which blocks
    attend. head_channels: channels of one attention head, None for a single head; blocks narrower than one head do not
    attend. embedding_mult: size of the level vectors over channels. s_embedding: CTM's s branch, or none (a diffusion
    model). guidance_embedding: whether the guidance scale is an input. dropout: before each block's second convolution.
    augment_dim: EDM's augmentation labels, 0 = none. level_features: "positional", or NCSN++'s "fourier", features_mult ·
    channels of them. encoder: "standard", or NCSN++'s "residual" with a second path down. resample_filter: one axis of the
    filter that halves and doubles images. patch: the U-Net runs on squares of patch × patch pixels as channels, at a
    patch²-th of the cost; 1: on pixels. arrays: the fields of a condition beside labels, as of `ctm.networks.fields.Fields`.
    The s branch's affines and the guidance's row start at zero: a student copied from a teacher starts as its teacher.
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
        guidance_embedding: bool = False,
        dropout: float = 0.0,
        augment_dim: int = 0,
        level_features: Literal["positional", "fourier"] = "positional",
        features_mult: int = 1,
        encoder: Literal["standard", "residual"] = "standard",
        resample_filter: Sequence[float] = (1, 1),
        patch: int = 1,
        arrays: Shapes | None = None,
    ) -> None:
        super().__init__()
        if level_features not in ("positional", "fourier") or encoder not in ("standard", "residual"):
            raise ValueError(
                'level_features is "positional" or "fourier" and encoder "standard" or "residual", '
                f"got {level_features!r} and {encoder!r}"
            )
        embedding, self.features = channels * embedding_mult, channels * features_mult
        self.fourier = FourierFeatures(self.features) if level_features == "fourier" else None
        self.t_embedding = LevelEmbedding(self.features, embedding)
        self.s_embedding = LevelEmbedding(self.features, embedding) if s_embedding else None
        self.label_embedding = LabelEmbedding(num_classes, self.features) if num_classes else None
        self.augment_embedding = nn.Linear(augment_dim, self.features, bias=False) if augment_dim else None
        self.guidance_embedding = GuidanceEmbedding(self.features, self.features) if guidance_embedding else None
        self.conditions = Fields(arrays, shape, self.features)
        style = BlockStyle(
            embedding=embedding,
            s_embedding=s_embedding,
            scale_shift=False,
            skip_scale=math.sqrt(0.5),
            group_channels=4,
            eps=1e-6,
            project_resampled=True,
            resample_filter=resample_filter,
            dropout=dropout,
        )
        self._build(
            shape,
            style,
            first=channels,
            widths=[channels * mult for mult in channel_mult],
            blocks=blocks,
            attention=attention,
            head_channels=head_channels,
            attend_last_only=True,
            auxiliary=encoder == "residual",
            patch=patch,
        )
        self._initialise()

    def _initialise(self) -> None:
        """EDM's: Xavier-uniform weights, zero biases; 1e-5 of that for what closes a residual branch and for the last
        layer, √0.2 of it for qkv; zero s affines and guidance row."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for module in self.modules():
            if isinstance(module, ResidualBlock):
                nn.init.xavier_uniform_(module.conv_out.weight, gain=1e-5)
            elif isinstance(module, Attention):
                nn.init.xavier_uniform_(module.qkv.weight, gain=math.sqrt(0.2))
                nn.init.xavier_uniform_(module.out.weight, gain=1e-5)
        nn.init.xavier_uniform_(self.last.weight, gain=1e-5)
        self._zero_own_branches()

    def _features(self, level: Tensor) -> Tensor:
        return song_features(level, self.features) if self.fourier is None else self.fourier(level)

    def _vectors(
        self, t: Tensor, s: Tensor | None, condition: Condition, augment: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """The condition's row goes early into both vectors, the augmentation's and the guidance's into the vector of t."""
        row = self._condition_row(condition, t.shape[0])
        early = add_rows(row, self._augment_row(augment), self._guidance_row(condition, t))
        t_vector = self.t_embedding(self._features(t), early)
        if self.s_embedding is None or s is None:
            return t_vector, None
        return t_vector, self.s_embedding(self._features(s), row)


class NCSNpp(DDPMpp):
    """DDPMpp with NCSN++'s choices as the defaults: Fourier features of the level, twice as many, a residual second path
    down, and the filter [1, 3, 3, 1]. Arguments, shapes and errors as there."""

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
        guidance_embedding: bool = False,
        dropout: float = 0.0,
        augment_dim: int = 0,
        features_mult: int = 2,
        resample_filter: Sequence[float] = (1, 3, 3, 1),
        arrays: Shapes | None = None,
    ) -> None:
        super().__init__(
            shape,
            num_classes,
            channels=channels,
            channel_mult=channel_mult,
            blocks=blocks,
            attention=attention,
            head_channels=head_channels,
            embedding_mult=embedding_mult,
            s_embedding=s_embedding,
            guidance_embedding=guidance_embedding,
            dropout=dropout,
            augment_dim=augment_dim,
            level_features="fourier",
            features_mult=features_mult,
            encoder="residual",
            resample_filter=resample_filter,
            arrays=arrays,
        )
