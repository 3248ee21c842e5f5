"""Projected multi-scale discriminators (arXiv 2111.01007; StyleGAN-XL, 2202.00273). Frozen feature networks give maps,
frozen random convolutions mix them over channels and scales, and each scale has a small trained head."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, interpolate
from torch.nn.utils.parametrizations import spectral_norm

from ctm.backbones import Backbone, EfficientNetLite0
from ctm.backbones.base import Networks
from ctm.conditions import Condition, labels_of
from ctm.discriminators.base import Discriminator, label_term, row_term
from ctm.networks.fields import Fields, Shapes

__all__ = ["LogitHead", "ProjectedDiscriminator", "ProjectedDiscriminatorNetwork", "RandomMixing"]

_SMALLEST = 4  # side to which a head halves its map
_WIDEST = 8  # times the channels of the finest map
_GROUP = 8  # channels of a group in GroupNorm


@dataclass(frozen=True)
class ProjectedDiscriminator(Discriminator):
    """One trained head for each map of each frozen feature network.

    backbones: the frozen feature networks; the paper's are EfficientNetLite0 and DeiT. mixed_channels: channels of the
    finest map after the mixing; the coarser maps have up to four or eight times as many. width: channels inside a head.
    seed: of the frozen mixing. Raises ValueError if there is no backbone, or if a width is no multiple of 8."""

    backbones: tuple[Backbone, ...] = field(default_factory=lambda: (EfficientNetLite0(),))
    mixed_channels: int = 64
    width: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.backbones:
            raise ValueError("a projected discriminator needs at least one feature network in `backbones`")
        for name in ("mixed_channels", "width"):
            if getattr(self, name) < _GROUP or getattr(self, name) % _GROUP:
                raise ValueError(f"{name} must be a multiple of {_GROUP}, got {getattr(self, name)}")

    def build(
        self, shape: Sequence[int], num_classes: int, networks: Networks | None = None, arrays: Shapes | None = None
    ) -> ProjectedDiscriminatorNetwork:
        """The module. One image is passed through the feature networks to find the sizes of their maps. Raises ValueError
        for data that are not images, and for fields that are maps."""
        if len(shape) != 3:
            raise ValueError(
                f"a projected discriminator sees images (C, H, W), the data have shape {tuple(shape)}: "
                "use ctm.discriminators.MLPDiscriminator"
            )
        maps = [name for name, sides in (arrays or {}).items() if len(sides) > 1]
        if maps:
            raise ValueError(
                f"a projected discriminator sees images through frozen feature networks, which take no map beside them, and the "
                f"data have {', '.join(maps)}: use ctm.discriminators.MLPDiscriminator, or train without Adversarial"
            )
        return ProjectedDiscriminatorNetwork(self, shape, num_classes, networks, arrays)


class ProjectedDiscriminatorNetwork(nn.Module):
    """The module that `ProjectedDiscriminator` builds. The feature networks are not part of its state."""

    def __init__(
        self,
        settings: ProjectedDiscriminator,
        shape: Sequence[int],
        num_classes: int,
        networks: Networks | None = None,
        arrays: Shapes | None = None,
    ) -> None:
        super().__init__()
        self.backbones = tuple(settings.backbones)
        self.mixings, self.heads = nn.ModuleList(), nn.ModuleList()
        student = None if networks is None else networks.student
        device = next(student.parameters()).device if isinstance(student, nn.Module) else None
        for number, backbone in enumerate(self.backbones):
            with torch.no_grad(), torch.random.fork_rng(devices=[]):  # loading one may draw numbers, the first time
                maps = backbone.maps(networks, torch.zeros(1, *shape, device=device))
            generator = torch.Generator().manual_seed(settings.seed + number)
            mixing = RandomMixing([found.shape[1] for found in maps], settings.mixed_channels, generator)
            heads = [
                LogitHead(channels, found.shape[-2:], settings.width, num_classes, arrays)
                for channels, found in zip(mixing.out_channels, maps, strict=True)
            ]
            self.mixings.append(mixing)
            self.heads.append(nn.ModuleList(heads))

    def forward(self, images: Tensor, condition: Condition = None, networks: Networks | None = None) -> list[Tensor]:
        """A logit map (B, 1, h, w) from each head, finest first for each backbone. images (B, C, H, W) in [−1, 1]."""
        logits: list[Tensor] = []
        for backbone, mixing, heads in zip(self.backbones, self.mixings, self.heads, strict=True):
            mixed = mixing(backbone.maps(networks, images))
            logits += [head(found, condition) for head, found in zip(heads, mixed, strict=True)]  # type: ignore[call-overload]
        return logits


class RandomMixing(nn.Module):
    """Frozen random mixing of a pyramid of maps (arXiv 2111.01007, section 3.2): each map's channels by a 1×1 convolution, then
    from the coarsest to the finest y_i = conv3×3(m_i + upsampled y_{i+1}), bilinear. Weights normal with variance 1/fan-in, from
    the generator alone. Scale i has channels·2^i after the first mixing, at most 8 times as many, and after the second as many
    as the next finer one before.
    """

    def __init__(self, in_channels: Sequence[int], channels: int, generator: torch.Generator) -> None:
        """in_channels: of the maps, finest first."""
        super().__init__()
        widths = [channels * min(2**i, _WIDEST) for i in range(len(in_channels))]
        self.out_channels = [widths[max(i - 1, 0)] for i in range(len(in_channels))]
        for i, (found, mixed, out) in enumerate(zip(in_channels, widths, self.out_channels, strict=True)):
            self.register_buffer(f"channel_{i}", _random((mixed, found, 1, 1), generator))
            self.register_buffer(f"scale_{i}", _random((out, mixed, 3, 3), generator))

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Maps (B, C_i, h_i, w_i), finest first -> mixed maps of the same sizes."""
        mixed: list[Tensor] = []
        for i, found in reversed(list(enumerate(maps))):
            hidden = conv2d(found, self.get_buffer(f"channel_{i}"))
            if mixed:
                hidden = hidden + interpolate(mixed[0], size=hidden.shape[-2:], mode="bilinear", align_corners=False)
            mixed.insert(0, conv2d(hidden, self.get_buffer(f"scale_{i}"), padding=1))
        return mixed


def _random(size: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randn(size, generator=generator) / math.sqrt(math.prod(size[1:]))


class LogitHead(nn.Module):
    """A map of logits from a map (B, C, h, w). Convolutions with spectral norm, each followed by GroupNorm and leaky ReLU,
    halve the map to 4×4; then each position gets one logit. With classes, ⟨e(y), hidden⟩/√width is added at each position, and
    with vectors as fields of the condition the same of their rows."""

    def __init__(
        self,
        channels: int,
        size: Sequence[int],
        width: int,
        num_classes: int,
        arrays: Shapes | None = None,
    ) -> None:
        super().__init__()
        halvings = max(0, math.ceil(math.log2(max(size) / _SMALLEST)))
        layers: list[nn.Module] = []
        for index in range(max(1, halvings)):
            inputs = channels if index == 0 else width
            kernel, stride = (4, 2) if halvings else (3, 1)
            convolution = nn.Conv2d(inputs, width, kernel, stride, padding=1, bias=False)
            layers += [spectral_norm(convolution), nn.GroupNorm(width // _GROUP, width), nn.LeakyReLU(0.2)]
        self.body = nn.Sequential(*layers)
        self.logit = spectral_norm(nn.Conv2d(width, 1, 1))
        self.labels: Any = spectral_norm(nn.Embedding(num_classes, width)) if num_classes else None
        self.fields = Fields(arrays, (1,), width) if arrays else None
        for module in [] if self.fields is None else list(self.fields.modules()):
            if isinstance(module, nn.Linear):
                spectral_norm(module)

    def forward(self, features: Tensor, condition: Condition = None) -> Tensor:
        """Logits (B, 1, h', w') of features (B, C, h, w) under the condition of the B samples."""
        labels = labels_of(condition)
        hidden = self.body(features)
        logits = self.logit(hidden)
        if self.labels is not None and labels is not None:
            logits = logits + label_term(self.labels, hidden, labels) / hidden.shape[1] ** 0.5
        row = None if self.fields is None else self.fields.row(condition, len(features))
        if row is not None:
            logits = logits + row_term(row, hidden) / hidden.shape[1] ** 0.5
        return logits
