"""One row of an evaluation: what was evaluated, its numbers, the few images kept for pictures; and its file."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ctm.evaluation.number import Number
from ctm.files import whole_file
from ctm.foreign.text import JSONObject

__all__ = ["Row"]


@dataclass(frozen=True)
class Row:
    """record: what was evaluated. numbers: by the names of METRICS. seconds: by stage (generator, features, sums, metrics).
    count: number of images. pixels uint8 (P, H, W, C): the first images. copies: numbers (M,) of the kept images that are
    most like a training image. originals: the numbers of these training images in the reference's order, nearest first.
    environment: the version and the machine that made the numbers."""

    record: JSONObject
    numbers: dict[str, Number]
    seconds: dict[str, float]
    count: int
    pixels: Tensor
    copies: Tensor
    originals: Tensor
    environment: dict[str, object]

    @property
    def seconds_per_image(self) -> float | None:
        """Seconds in the generator for an image, on one process; None for samples that were given."""
        return None if self.record["role"] == "samples" else self.seconds["generator"] / self.count

    def as_json(self) -> dict[str, object]:
        """All except the images, as plain values."""
        numbers = {name: {"value": number.value, "error": number.error} for name, number in self.numbers.items()}
        about = {"count": self.count, "seconds": self.seconds, "seconds_per_image": self.seconds_per_image}
        about |= {"environment": self.environment}
        return {**self.record, **about, "numbers": numbers}

    def save(self, path: Path) -> None:
        """Write to a file that appears whole."""
        tensors = {"pixels": self.pixels, "copies": self.copies, "originals": self.originals}
        about = {key: value for key, value in self.as_json().items() if key not in self.record}
        with whole_file(path) as temporary:
            save_file(tensors, temporary, {"record": json.dumps(self.record), "about": json.dumps(about)})

    @classmethod
    def load(cls, path: Path) -> Row | None:
        """The row in a file; None if there is none or it is damaged."""
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata()
                tensors = {name: file.get_tensor(name) for name in ("pixels", "copies", "originals")}
            about = json.loads(metadata["about"])
            numbers = {name: Number(**number) for name, number in about["numbers"].items()}
            record = json.loads(metadata["record"])
            return cls(record, numbers, about["seconds"], about["count"], **tensors, environment=about["environment"])
        except (OSError, SafetensorError, KeyError, TypeError, ValueError, RecursionError):
            return None


def nothing() -> Tensor:
    """Numbers of no image."""
    return torch.zeros(0, dtype=torch.int64)
