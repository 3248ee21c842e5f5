"""The feature networks of the metrics. Each has a name, a checksum and a record of how it resizes images."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ctm.backbones import EfficientNetLite0
from ctm.data import Images
from ctm.evaluation.classifier import Classifier
from ctm.evaluation.dino import load_dino
from ctm.evaluation.inception import SIDE, load_inception
from ctm.files import file_digest

__all__ = [
    "NAMES",
    "Extractor",
    "checksum_of",
    "classifier_extractor",
    "data_extractor",
    "file_checksum",
    "make_extractor",
]

Look = Callable[[Tensor], tuple[Tensor, Tensor | None]]
_SPATIAL_CHANNELS = 7  # of a map with much space left, as in ADM's spatial FID (arXiv 2105.05233)
_SMALL = 64


@dataclass(frozen=True)
class Extractor:
    """A feature network of the metrics. look: images (B, 1 or 3, H, W) in [−1, 1] -> features (B, F), and (B, S) of a map
    that keeps positions, or None.

    name; checksum: of the weights. resize: how images are resized. features, spatial: F and S (0 for none)."""

    name: str
    checksum: str
    resize: str
    features: int
    spatial: int
    look: Look

    @torch.no_grad()
    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        return self.look(images)

    def record(self) -> dict[str, str]:
        """What a reader needs to use the same network."""
        return {"name": self.name, "checksum": self.checksum, "resize": self.resize}


def file_checksum(path: Path) -> str:
    """The first 16 digits of the file's SHA-256."""
    return file_digest(path)[:16]


def checksum_of(module: nn.Module) -> str:
    """The first 16 digits of the SHA-256 of a module's names and weights."""
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(tensor.detach().cpu().flatten().numpy()).tobytes())
    return digest.hexdigest()[:16]


def spatial_features(images: Tensor) -> Tensor:
    """A map (B, C, h, w) as features (B, h·w·7): its first seven channels, each position a feature, with the channels
    innermost. This is the order of the statistics that ADM's evaluator writes (openai/guided-diffusion,
    evaluations/evaluator.py)."""
    return images[:, :_SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1)


def _efficientnet(side: int | None, size: int) -> Extractor:
    chosen = side or (64 if size <= _SMALL else 224)
    network = EfficientNetLite0(side=chosen)

    def look(images: Tensor) -> tuple[Tensor, Tensor | None]:
        maps, pooled = network.maps_and_pooled(images)
        return pooled, spatial_features(maps[1])

    spatial = _SPATIAL_CHANNELS * (chosen // 8) ** 2
    checksum = file_checksum(network.weights_file())
    resize = f"bilinear to {chosen}×{chosen}, no antialiasing"
    return Extractor("efficientnet", checksum, resize, network.pooled_channels, spatial, look)


def classifier_extractor(classifier: Classifier) -> Extractor:
    """The 64 features of a classifier trained on the data."""

    def look(images: Tensor) -> tuple[Tensor, Tensor | None]:
        return classifier.features(images), None

    return Extractor("classifier", checksum_of(classifier), "none", classifier.num_features, 0, look)


def _inception(side: int | None, size: int) -> Extractor:
    if side not in (None, SIDE):
        raise ValueError(f"Inception-v3 looks at {SIDE}×{SIDE} pixels: leave --side out")
    network, file = load_inception()

    def look(images: Tensor) -> tuple[Tensor, Tensor | None]:
        pooled, spatial = network.to(images.device)(images)
        return pooled, spatial_features(spatial)

    resize = f"bilinear to {SIDE}×{SIDE} by TensorFlow 1's rule"
    return Extractor("inception", file_checksum(file), resize, network.num_features, _SPATIAL_CHANNELS * 17**2, look)


def _dino(side: int | None, size: int) -> Extractor:
    network = load_dino(side)

    def look(images: Tensor) -> tuple[Tensor, Tensor | None]:
        return network.to(images.device)(images), None

    resize = f"bicubic to {network.side}×{network.side}, antialiased"
    return Extractor("dinov2", checksum_of(network), resize, network.num_features, 0, look)


_MAKERS: dict[str, Callable[[int | None, int], Extractor]] = {
    "efficientnet": _efficientnet,
    "inception": _inception,
    "dinov2": _dino,
}
NAMES = ("classifier", *_MAKERS)


def make_extractor(name: str, size: int, side: int | None = None) -> Extractor:
    """The feature network of that name for images of size × size. "classifier" is not made here, because it needs data.

    side: the size in pixels at which it looks; None for its own choice. Raises ValueError for an unknown name or an
    unfitting side, and ImportError or FileNotFoundError where weights are missing. Each error says what to do."""
    if name not in _MAKERS:
        raise ValueError(f"--features must be one of {', '.join(NAMES)}, got {name!r}")
    return _MAKERS[name](side, size)


def data_extractor(name: str, data: Images, classifier: Classifier | None, side: int | None = None) -> Extractor:
    """The feature network of that name for these images. classifier: trained on them, None where they have no labels or another
    network is asked for. Raises as `make_extractor`, and ValueError for "classifier" where there is none."""
    if name != "classifier":
        return make_extractor(name, max(data.shape[1:]), side)
    if classifier is None:
        raise ValueError(f"--features classifier trains on the labels of the data, and {data.name} has none")
    return classifier_extractor(classifier)
