"""The teacher's own encoder as a feature network, as in SoundCTM (arXiv 2405.18503). It needs no weights from elsewhere, and
takes any data that the teacher knows, grey images and latents too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ctm.backbones.base import Backbone
from ctm.noise import match_dims

__all__ = ["TeacherEncoder"]


@dataclass(frozen=True)
class TeacherEncoder(Backbone):
    """Maps of the teacher's network on its way down, `encode(c_in·x, t)`, without labels: the last map of each level of a
    U-Net, or the hidden layer after each block of an `MLP` (as maps of 1×1).

    level: the noise level t > 0 that the network is told, with c_in of it. No noise is added. Raises ValueError for another
    level."""

    level: float = 0.1

    def __post_init__(self) -> None:
        if not self.level > 0:
            raise ValueError(f"level is a noise level above 0, got {self.level}")

    def features(self, prepared: Tensor) -> Sequence[Tensor]:
        return self.maps(None, prepared)

    def __call__(self, images: Tensor) -> list[Tensor]:
        return self.maps(None, images)

    def maps(self, networks: Any, images: Tensor) -> list[Tensor]:
        """Maps (B, C, h, w), finest first, of images (B, *shape) as the teacher takes them. networks: has the `teacher`.

        Raises ValueError if there is no teacher or its network has no `encode`."""
        teacher = getattr(networks, "teacher", None)
        network: Any = getattr(teacher, "network", None)
        if not hasattr(network, "encode"):
            found = "there is no teacher" if teacher is None else f"{type(network or teacher).__name__} has none"
            raise ValueError(
                f"the teacher's own features need a teacher whose network has encode(x, t, condition), and {found}: "
                "give --teacher MODEL, or take another distance"
            )
        assert teacher is not None
        weights = next(network.parameters())
        level = torch.full((len(images),), self.level, device=images.device)
        own = teacher.preconditioning
        _, _, c_in = own.scalings(level)
        scaled = match_dims(c_in, images) * images
        return [found.to(images.dtype) for found in network.encode(scaled.to(weights.dtype), own.level(level))]
