"""The two forms of the ADM U-Net (Dhariwal and Nichol, arXiv 2105.05233): EDM's, and the form of consistency models and of CTM's
ImageNet-64 model. Both take CTM's second level embedding (arXiv 2310.02279)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from ctm.conditions import Condition
from ctm.networks.base import (
    GuidanceEmbedding,
    LabelEmbedding,
    LevelEmbedding,
    add_rows,
    adm_features,
    dhariwal_features,
)
from ctm.networks.blocks import Attention, BlockStyle, ResidualBlock
from ctm.networks.fields import Fields, Shapes
from ctm.networks.unet import UNet

__all__ = ["ADM", "DhariwalUNet"]


class _ADMBase(UNet):
    """The two forms' common initialisation and way with labels."""

    def _initialise(self) -> None:
        """ADM's: U(−1/√fan_in, 1/√fan_in) for weights and biases (torch's own), zero for what closes a residual branch and
        for the last layer, N(0, 1) for label rows; zero s affines and guidance row."""
        closing: list[nn.Module] = [self.last]
        for module in self.modules():
            if isinstance(module, ResidualBlock):
                closing.append(module.conv_out)
            elif isinstance(module, Attention):
                closing.append(module.out)
        for layer in closing:
            for parameter in layer.parameters():
                nn.init.zeros_(parameter)
        if self.label_embedding is not None:
            nn.init.normal_(self.label_embedding.linear.weight)
        if self.augment_embedding is not None:
            nn.init.zeros_(self.augment_embedding.weight)
        self._zero_own_branches()


class DhariwalUNet(_ADMBase):
    """EDM's ADM: F for images (C, H, W) of any channel count; H and W divisible by 2^(levels − 1).

    It embeds ¼·ln t; the condition's row goes into the t and the s vector. Arguments as of `DDPMpp`: head_channels 64 as there
    is no other choice in EDM, dropout before each block's second convolution, augment_dim 0 = no augmentation labels.
    Raises ValueError for an image size that the levels do not divide.
    """

    def __init__(
        self,
        shape: Sequence[int],
        num_classes: int = 0,
        *,
        channels: int = 192,
        channel_mult: Sequence[int] = (1, 2, 3, 4),
        blocks: int = 3,
        attention: Sequence[int] = (32, 16, 8),
        head_channels: int | None = 64,
        embedding_mult: int = 4,
        s_embedding: bool = True,
        guidance_embedding: bool = False,
        dropout: float = 0.0,
        augment_dim: int = 0,
        resample_filter: Sequence[float] = (1, 1),
        arrays: Shapes | None = None,
    ) -> None:
        super().__init__()
        self.features, embedding = channels, channels * embedding_mult
        self.t_embedding = LevelEmbedding(channels, embedding)
        self.s_embedding = LevelEmbedding(channels, embedding) if s_embedding else None
        self.label_embedding = LabelEmbedding(num_classes, embedding, scaled=False, bias=False) if num_classes else None
        self.augment_embedding = nn.Linear(augment_dim, channels, bias=False) if augment_dim else None
        self.guidance_embedding = GuidanceEmbedding(channels, channels) if guidance_embedding else None
        self.conditions = Fields(arrays, shape, embedding)
        style = BlockStyle(
            embedding=embedding,
            s_embedding=s_embedding,
            scale_shift=True,
            skip_scale=1.0,
            group_channels=4,
            eps=1e-5,
            project_resampled=False,
            resample_filter=resample_filter,
            dropout=dropout,
        )
        self._build(
            shape,
            style,
            first=channels * channel_mult[0],
            widths=[channels * mult for mult in channel_mult],
            blocks=blocks,
            attention=attention,
            head_channels=head_channels,
        )
        self._initialise()

    def _features(self, level: Tensor) -> Tensor:
        return dhariwal_features(level, self.features)

    def _vectors(
        self, t: Tensor, s: Tensor | None, condition: Condition, augment: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """The augmentation's and the guidance's row go early into the vector of t, the condition's late into both."""
        row = self._condition_row(condition, t.shape[0])
        early = add_rows(self._augment_row(augment), self._guidance_row(condition, t))
        t_vector = self.t_embedding(self._features(t), early, row)
        if self.s_embedding is None or s is None:
            return t_vector, None
        return t_vector, self.s_embedding(self._features(s), late=row)


class ADM(_ADMBase):
    """The U-Net of consistency models and of CTM's ImageNet-64 model (guided diffusion's with scale-shift norms and
    resampling residual blocks): F for images (C, H, W) of any channel count; H and W divisible by 2^(levels − 1).

    It embeds 250·ln t; the condition's row goes into the t vector only; norms have 32 groups. Arguments as of `DDPMpp`;
    attention: image heights. Raises ValueError for an image size that the levels do not divide.
    """

    def __init__(
        self,
        shape: Sequence[int],
        num_classes: int = 0,
        *,
        channels: int = 192,
        channel_mult: Sequence[float] = (1, 2, 3, 4),
        blocks: int = 3,
        attention: Sequence[int] = (32, 16, 8),
        head_channels: int | None = 64,
        embedding_mult: int = 4,
        s_embedding: bool = True,
        guidance_embedding: bool = False,
        dropout: float = 0.0,
        arrays: Shapes | None = None,
    ) -> None:
        super().__init__()
        self.features, embedding = channels, channels * embedding_mult
        self.t_embedding = LevelEmbedding(channels, embedding)
        self.s_embedding = LevelEmbedding(channels, embedding) if s_embedding else None
        self.label_embedding = LabelEmbedding(num_classes, embedding, scaled=False, bias=False) if num_classes else None
        self.augment_embedding = None
        self.guidance_embedding = GuidanceEmbedding(channels, channels) if guidance_embedding else None
        self.conditions = Fields(arrays, shape, embedding)
        style = BlockStyle(
            embedding=embedding,
            s_embedding=s_embedding,
            scale_shift=True,
            skip_scale=1.0,
            group_channels=1,
            eps=1e-5,
            project_resampled=False,
            dropout=dropout,
        )
        widths = [round(channels * mult) for mult in channel_mult]
        self._build(
            shape,
            style,
            first=widths[0],
            widths=widths,
            blocks=blocks,
            attention=attention,
            head_channels=head_channels,
        )
        self._initialise()

    def _features(self, level: Tensor) -> Tensor:
        return adm_features(level, self.features)

    def _vectors(
        self, t: Tensor, s: Tensor | None, condition: Condition, augment: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """The guidance's row goes early into the vector of t, the condition's late."""
        row = self._condition_row(condition, t.shape[0])
        t_vector = self.t_embedding(self._features(t), self._guidance_row(condition, t), row)
        if self.s_embedding is None or s is None:
            return t_vector, None
        return t_vector, self.s_embedding(self._features(s))
