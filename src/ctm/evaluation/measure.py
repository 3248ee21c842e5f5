"""All numbers of one set of samples, from its statistics and the reference's."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ctm.data import to_model_range
from ctm.evaluation.frechet import frechet_number, frechet_numbers
from ctm.evaluation.kernels import cmmd, kid
from ctm.evaluation.neighbours import NEIGHBOURS, Memorisation, precision_recall
from ctm.evaluation.number import Number, mean_with_error
from ctm.evaluation.reference import QUERIES, Reference
from ctm.evaluation.scores import psnr
from ctm.evaluation.statistics import Statistics

__all__ = ["METRICS", "Metric", "compare_images", "measure"]

_PRODUCTS = 4096  # rows whose products with all others are kept together


@dataclass(frozen=True)
class Metric:
    """title: for the head of a table. better: +1 if more is better, −1 if less is better, 0 for neither."""

    title: str
    better: int


METRICS = {
    "frechet": Metric("Fréchet", -1),
    "frechet_infinity": Metric("Fréchet∞", -1),
    "spatial_frechet": Metric("spatial Fréchet", -1),
    "kid": Metric("KID", -1),
    "cmmd": Metric("CMMD", -1),
    "inception_score": Metric("Inception score", 1),
    "precision": Metric("precision", 1),
    "recall": Metric("recall", 1),
    "density": Metric("density", 1),
    "coverage": Metric("coverage", 1),
    "diversity": Metric("diversity in a class", 0),
    "label_accuracy": Metric("label accuracy", 1),
    "mse_to_teacher": Metric("MSE to teacher", -1),
    "psnr_to_teacher": Metric("PSNR to teacher", 1),
    "memorised": Metric("closer to training", 0),
    "memorised_expected": Metric("closer, expected", 0),
    "bits_per_dim": Metric("bits/dim", -1),
}


def measure(
    samples: Statistics, reference: Reference, *, labelled: bool
) -> tuple[dict[str, Number], Memorisation | None]:
    """(the numbers by the names of METRICS, the memorisation check), as far as the reference and the samples allow.

    labelled: whether the samples were made for classes, so that the classifier's answer can be right."""
    numbers: dict[str, Number] = {}
    numbers["frechet"], limit = frechet_numbers(samples.moments, reference.gaussian, reference.count)
    if limit is not None:
        numbers["frechet_infinity"] = limit
    if samples.spatial is not None and reference.spatial is not None:
        numbers["spatial_frechet"] = frechet_number(samples.spatial, reference.spatial)
    if samples.probabilities is not None:
        numbers["inception_score"] = samples.probabilities.inception_score()
        named = 0.0 if samples.classes is None else float(samples.classes.count.sum())
        if labelled and named > 0:
            numbers["label_accuracy"] = samples.probabilities.accuracy(named)
    if labelled and samples.classes is not None and reference.classes is not None:
        numbers["diversity"] = samples.classes.diversity(reference.classes)
    if reference.rows is None:
        return numbers, None
    products = _products(samples.rows, reference.rows)
    numbers["kid"] = kid(samples.rows, reference.rows)
    numbers["cmmd"] = cmmd(samples.rows, reference.rows, reference.own_kernel, products)
    if min(len(samples.rows), len(reference.rows)) > NEIGHBOURS:
        numbers |= precision_recall(reference.rows, samples.rows, NEIGHBOURS, reference.radii, products)
    if reference.training is None:
        return numbers, None
    copies = reference.training.memorisation(samples.rows[:QUERIES])
    numbers["memorised"], numbers["memorised_expected"] = copies.share, copies.expected
    return numbers, copies


def _products(fake: Tensor, real: Tensor) -> tuple[Tensor, Tensor] | None:
    """The products that both CMMD and the neighbours need, computed once. None if they would take hundreds of megabytes."""
    if max(len(fake), len(real)) > _PRODUCTS:
        return None
    fake, real = fake.double(), real.double()
    return fake @ fake.T, fake @ real.T


def compare_images(samples: Tensor, teacher: Tensor) -> dict[str, Number]:
    """Mean squared error (in units of [−1, 1]) and PSNR of images uint8 (P, H, W, C), against the teacher's images from the
    same noise. Equal images have no PSNR."""
    mine, theirs = (to_model_range(each).double() for each in (samples, teacher))
    mse = mean_with_error((mine - theirs).square().flatten(1).mean(dim=1))
    if mse.value == 0:  # the same images, whose PSNR is no number
        return {"mse_to_teacher": mse}
    slope = None if mse.error is None else 10 / math.log(10) * mse.error / mse.value
    return {
        "mse_to_teacher": mse,
        "psnr_to_teacher": Number(float(psnr(torch.tensor(mse.value, dtype=torch.float64))), slope),
    }
