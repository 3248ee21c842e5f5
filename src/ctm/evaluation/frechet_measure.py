"""Fréchet distance to images as the measure that `ctm.tune_grid` minimises."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ctm.data import Images, epoch_order, tell
from ctm.evaluation.classes import shared_classes
from ctm.evaluation.conditions import FieldsFrom, check_fields, sample_fields, with_labels
from ctm.evaluation.extractors import data_extractor
from ctm.evaluation.frechet import frechet
from ctm.evaluation.moments import Gaussian
from ctm.evaluation.passes import Processes
from ctm.evaluation.reference import classifier_of, images_checksum
from ctm.evaluation.sources import data_labels
from ctm.models.protocol import Denoiser
from ctm.pictures import as_saved
from ctm.sampling import class_labels, generate

__all__ = ["FrechetMeasure"]

_IMAGES = 5000  # of each half that are looked at


class FrechetMeasure:
    """Fréchet distance of samples to one half of the images, a `ctm.sampling.GridMeasure`: (1,) when tuning, (repeats,) when
    held out.

    images: split once at random. One half (at most 5,000 of it) tunes. The other half judges, with samples from other seeds.
    Samples are looked at as a picture file holds them. features: "classifier" (trained on the labels of all images) or
    "efficientnet"; side: its pixels, as in `ctm evaluate`. num: samples for a distance. Classes are as frequent as in the
    half, if the model and the images share them. fields: where the fields of the samples' conditions come from: the half's rows,
    nowhere, or a file. Distances of few samples are biased upwards, all in the same way. Raises
    ValueError for images of another shape or of a class that the model does not know by name, for fewer than 4 images, and
    for num or repeats too small."""

    def __init__(
        self,
        model: Denoiser,
        images: Images,
        *,
        features: str = "efficientnet",
        side: int | None = None,
        num: int = 1000,
        repeats: int = 4,
        seed: int = 0,
        device: torch.device | None = None,
        fields: FieldsFrom = "data",
    ) -> None:
        if tuple(images.shape) != tuple(model.shape):
            raise ValueError(f"the images are {tuple(images.shape)} and the model's samples {tuple(model.shape)}")
        if len(images) < 4 or num < 2 or repeats < 1:
            raise ValueError(
                "a Fréchet distance needs at least 4 images, 2 samples and 1 repeat, got "
                f"{len(images)}, {num} and {repeats}"
            )
        self.name = f"Fréchet distance, {features} features"
        self.model, self._num, self._repeats, self._seed = model, num, repeats, seed
        self._device = device or torch.device("cpu")
        self._fields, self._shared = fields, shared_classes(images, model, strict=True)
        tell(check_fields(fields, images, model, "the model", "data"), images.name)
        classifier = None
        if features == "classifier":
            classifier = classifier_of(images, images_checksum(images), Processes(device=self._device))
        self._look = data_extractor(features, images, classifier, side)
        order = epoch_order(len(images), 0, len(images), seed)
        self._halves = [_part(images, order[held_out::2]) for held_out in (0, 1)]
        self._real: dict[bool, Gaussian] = {}

    def __call__(self, levels: Tensor, gamma: float, *, held_out: bool) -> Tensor:
        if held_out not in self._real:
            half = self._halves[held_out]
            x, _ = half.batch(np.arange(min(len(half), _IMAGES)))
            self._real[held_out] = self._gaussian(x)
        seeds = [self._seed + 1 + repeat for repeat in range(self._repeats)] if held_out else [self._seed]
        found = [frechet(self._gaussian(self._samples(levels, gamma, seed)), self._real[held_out]) for seed in seeds]
        return torch.tensor(found, dtype=torch.float64)

    def _samples(self, levels: Tensor, gamma: float, seed: int) -> Tensor:
        half = self._halves[seed != self._seed]
        drawn = None if self._shared is None else data_labels(half, self._num, seed)
        chosen = None if drawn is None or self._shared is None else self._shared.of_model(drawn)
        labels = class_labels(self.model, self._num, chosen, seed)
        fields = sample_fields(self._fields, half, self.model, self._num, seed)
        if fields and self._fields == "data" and labels is not None and chosen is None:
            labels = torch.full_like(labels, -1)  # the classes that belong to the rows are not known
        options: dict[str, Any] = {"condition": with_labels(fields, labels), "seed": seed, "batch_size": 250}
        return generate(self.model, self._num, grid=levels, gamma=gamma, **options)

    def _gaussian(self, x: Tensor) -> Gaussian:
        seen = [self._look(as_saved(part).to(self._device))[0].cpu() for part in x.split(250)]
        return Gaussian.of(torch.cat(seen))


def _part(images: Images, chosen: np.ndarray) -> Images:
    labels = None if images.labels is None else images.labels[chosen]
    fields = {name: values[chosen] for name, values in images.fields.items()}
    return replace(images, pixels=images.pixels[chosen], labels=labels, fields=fields)
