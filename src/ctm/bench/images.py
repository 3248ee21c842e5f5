"""How good a student's images are: Fréchet distances at 1, 2, 4 and 8 jumps over EfficientNet-Lite0."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ctm.backbones import EfficientNetLite0
from ctm.data import Images, load_images
from ctm.evaluation.frechet import frechet_distance, frechet_number
from ctm.evaluation.moments import BlockMoments, Gaussian
from ctm.models import load_model
from ctm.models.protocol import Denoiser
from ctm.noise import karras_grid, to_zero
from ctm.pictures import as_saved
from ctm.sampling import generate, heun

__all__ = ["STEPS", "ImageBench"]

STEPS = (1, 2, 4, 8)
_GRID_POINTS = 18
_BATCH = 250
_SIDE = 64


class ImageBench:
    """The real images through the feature network, and the measuring of models.

    data: a set by name. teacher: its model. count: samples for each distance, against twice as many real images, or all.
    They have the real images' labels."""

    def __init__(self, data: str, teacher: Path, count: int) -> None:
        self.images: Images = load_images(data)
        self.features = EfficientNetLite0(side=_SIDE)
        self.teacher, self.count = load_model(str(teacher)), count
        order = np.random.default_rng(0).permutation(len(self.images))[: 2 * count]
        x, labels = self.images.batch(order)
        self.labels = None if labels is None else labels[:count]
        self.real = self._features(x)
        self.gaussian = Gaussian.of(self.real)  # whose root is computed once
        self.reference: Tensor | None = None

    @property
    def protocol(self) -> dict[str, Any]:
        """What a distance is measured by."""
        return {"features": "EfficientNet-Lite0", "side": _SIDE, "samples": self.count, "real": len(self.real)}

    @torch.no_grad()
    def _features(self, x: Tensor) -> Tensor:
        return torch.cat([self.features.pooled(part) for part in as_saved(x).split(_BATCH)])

    def of_teacher(self) -> dict[str, Any]:
        """The numbers of the teacher, sampled by Heun's method with 18 levels and 0: 35 evaluations. floor: the distance between
        two disjoint halves of the real images."""
        half = len(self.real) // 2
        floor = frechet_distance(self.real[:half], self.real[half:])
        return {"evaluations": 35, "floor": floor, "35": self._frechet(self._teacher_samples())}

    def of_student(self, model: Denoiser, gamma: float) -> dict[str, dict[str, float | None]]:
        """By the number of jumps with γ-sampling: the Fréchet distance, its standard error by blocks of samples, and the mean
        squared distance of samples to the teacher's from the same noise."""
        found = {}
        for steps in STEPS:
            samples = self._draw(model, steps=steps, gamma=gamma if steps > 1 else 0.0)
            squared = float((samples - self._teacher_samples()).square().mean())
            found[str(steps)] = {**self._frechet(samples), "mse_to_teacher": squared}
        return found

    def _frechet(self, samples: Tensor) -> dict[str, float | None]:
        rows = self._features(samples)
        moments = BlockMoments(rows.shape[1])
        moments.add(rows, torch.arange(len(rows)))
        number = frechet_number(moments, self.gaussian)
        return {"frechet": number.value, "error": number.error}

    def _draw(self, model: Denoiser, **options: Any) -> Tensor:
        return generate(model, self.count, condition=self.labels, seed=0, batch_size=_BATCH, **options)

    def _teacher_samples(self) -> Tensor:
        if self.reference is None:
            grid = karras_grid(_GRID_POINTS - 1, self.teacher.sigma_min, self.teacher.sigma_max)
            self.reference = self._draw(self.teacher, grid=to_zero(grid), sampler=heun)
        return self.reference
