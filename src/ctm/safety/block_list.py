"""A block list: pictures that must not come out, known by their features, searched exactly. If the training set is the list, it
finds a training image that is given back."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.numpy import load, save
from usearch.index import search

from ctm.backbones import EfficientNetLite0
from ctm.data.images import to_model_range
from ctm.files import write_whole
from ctm.foreign.text import read_json
from ctm.safety.filters import Limits, Scores

__all__ = ["BlockList", "features_of"]

_FORM = 2  # of the files; another form is refused
_SIDE = 224
_BATCH = 16


@dataclass(frozen=True)
class BlockList:
    """A filter whose score `near` is the largest cosine between a picture's features and those on the list, 0 where it is
    negative. 1 is the picture itself.

    The features are EfficientNet-Lite0's 1,280 pooled ones at 224 pixels, float32 (N, 1280). checksum: SHA-256 of the list. Two
    files keep it: FILE with the features (safetensors), and FILE.json, which says what it is. The file holds numbers and no
    index, because usearch reads an index without looking whether it is one, and a damaged one ends the process."""

    features: np.ndarray
    checksum: str

    name = "block_list"
    categories = ("near",)
    limits = Limits(smallest=1, batch=_BATCH)

    @classmethod
    def of(cls, batches: Iterable[np.ndarray]) -> BlockList:
        """A list of the pictures in batches uint8 (B, H, W, 1 or 3). Raises ValueError for none at all."""
        parts = [features_of(pixels) for pixels in batches]
        if not sum(len(part) for part in parts):
            raise ValueError("a block list needs at least one picture")
        features = np.ascontiguousarray(np.concatenate(parts), dtype=np.float32)
        return cls(features, hashlib.sha256(_bytes(features)).hexdigest())

    @classmethod
    def load(cls, path: Path) -> BlockList:
        """The list in a file. Raises ValueError for a file that is none, or that was changed, and OSError for one that cannot be
        read."""
        about = read_json(_beside(path))
        if not isinstance(about, dict) or about.get("form") != _FORM:
            raise ValueError(
                f"{_beside(path)} does not describe a block list of this ctm: make it again by ctm moderate block"
            )
        if about.get("features") != _weights():
            raise ValueError(f"{path} was made with another feature network: make it again by ctm moderate block")
        if not path.is_file():
            raise ValueError(f"{path} is no file: block_list takes one that ctm moderate block made")
        content = path.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        if about.get("sha256") != digest:
            raise ValueError(
                f"{path} is not the list that {_beside(path).name} describes: make it again by ctm moderate block"
            )
        return cls(_features_in(content, path), digest)

    def save(self, path: Path) -> None:
        """Write both files, each whole or not at all. Raises OSError, which names the file."""
        about = {"form": _FORM, "pictures": len(self), "features": _weights(), "sha256": self.checksum}
        write_whole(path, _bytes(self.features))
        write_whole(_beside(path), (json.dumps(about, indent=2) + "\n").encode())

    def __len__(self) -> int:
        return len(self.features)

    def __call__(self, images: Sequence[np.ndarray]) -> list[Scores]:
        found = search(self.features, features_of(images), 1, exact=True)  # by 1 − cosine
        return [
            {"near": float(np.clip(1.0 - distance, 0.0, 1.0))} for distance in found.distances.reshape(len(images))
        ]  # NaN stays NaN, which blocks


def _features_in(content: bytes, path: Path) -> np.ndarray:
    """The features in the bytes of a list. Raises ValueError for what is none."""
    try:
        features = load(content).get("features")
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError):
        features = None
    shape = None if features is None else (features.ndim, *features.shape[1:], str(features.dtype))
    if features is None or shape != (2, EfficientNetLite0.pooled_channels, "float32") or not len(features):
        raise ValueError(f"{path} is no block list: make it again by ctm moderate block")
    if not np.isfinite(features).all():
        raise ValueError(f"{path} holds features that are no numbers: make it again by ctm moderate block")
    return np.ascontiguousarray(features)


@torch.inference_mode()
def features_of(images: Iterable[np.ndarray]) -> np.ndarray:
    """Features float32 (B, 1280) of length 1 of pictures uint8 (H, W, 1 or 3). Each is resized to 224×224 first, bilinearly, and
    without aliasing where it becomes smaller."""
    network, found, prepared = EfficientNetLite0(_SIDE), [], [_prepared(image) for image in images]
    for start in range(0, len(prepared), _BATCH):
        batch = torch.from_numpy(np.stack(prepared[start : start + _BATCH]))
        found.append(network.pooled(to_model_range(batch)))
    return torch.nn.functional.normalize(torch.cat(found), dim=1).numpy()


def _prepared(image: np.ndarray) -> np.ndarray:
    picture = Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).convert("RGB")
    return np.array(picture.resize((_SIDE, _SIDE), Image.Resampling.BILINEAR))


def _weights() -> str:
    """SHA-256 of the feature network's weights, with what else decides the features."""
    return hashlib.sha256(EfficientNetLite0.weights_file().read_bytes() + f" pooled {_SIDE}".encode()).hexdigest()


def _bytes(features: np.ndarray) -> bytes:
    return bytes(save({"features": features}))


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")
