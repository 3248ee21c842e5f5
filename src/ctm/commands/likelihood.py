"""Bits per dimension of a data set under a model."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jsonargparse import Namespace

from ctm import __version__
from ctm.commands.common import Parser, command_parser
from ctm.commands.options import usable_device
from ctm.data import load_images
from ctm.evaluation.lossless import histogram_bits, png_bits
from ctm.likelihood import estimate_bits_per_dim
from ctm.models import load_model
from ctm.progress import tracked

__all__ = ["parser", "run"]


def parser() -> Parser:
    result = command_parser(
        "likelihood",
        "Bits per dimension of images, by the probability flow, beside what PNG files and a histogram of each pixel cost.",
        "ctm likelihood models/digits-teacher --data digits --num 200 --trace exact",
    )
    add = result.add_argument
    add("model", type=str, help="model directory, run directory or hub id")
    add("--data", type=str, required=True, help="digits, mnist5k, fashion-mnist, a path or a hub id")
    add("--split", type=str, default="test", help="train or test, where the data set has both")
    add("--num", type=int, default=100, help="number of images, the first of the set")
    add("--labels", type=str, default="own", help="own: the images' classes, where model and data have them; none")
    add(
        "--trace",
        type=str,
        default="hutchinson",
        help="hutchinson, or exact (a backward pass for each value: small images)",
    )
    add("--probes", type=int, default=1, help="Hutchinson's probes for each image")
    add("--probe", type=str, default="rademacher", help="their distribution: rademacher or gaussian")
    add("--rtol", type=float, default=1e-5, help="relative tolerance of the solver")
    add("--atol", type=float, default=1e-5, help="absolute tolerance of the solver")
    add("--seed", type=int, default=0, help="dequantisation and probes of image i depend on (seed, i) alone")
    add("--batch_size", type=int, default=64, help="images computed together")
    add("--device", type=str, default=None, help="cpu, cuda … (default: cuda where there is one)")
    add("--out", type=str, default=None, help="a JSON file for the numbers, those of each image among them")
    return result


def run(settings: Namespace) -> None:
    """Measure batch by batch, then print the table."""
    model = load_model(settings.model)
    if len(model.shape) != 3 or model.shape[0] not in (1, 3) or model.shape[1] != model.shape[2]:
        raise ValueError(f"{settings.model} is a model of shape {model.shape}: bits per dimension need square images")
    if settings.num < 1 or settings.batch_size < 1:
        raise ValueError(f"--num and --batch_size must be at least 1, got {settings.num} and {settings.batch_size}")
    if settings.labels not in ("own", "none"):
        raise ValueError(f"--labels must be own or none, got {settings.labels!r}")
    if settings.out is not None and (Path(settings.out).is_dir() or Path(settings.out).suffix != ".json"):
        raise ValueError(f"--out {settings.out} must name a .json file")
    model = model.to(usable_device(settings.device))
    channels, size, _ = model.shape
    images = load_images(settings.data, size, channels, settings.split)
    pixels = np.array(images.pixels[: settings.num])  # a copy: the set may be read-only
    labels = None if images.labels is None or settings.labels == "none" else images.labels[: settings.num]
    if labels is not None and model.num_classes < images.num_classes:
        labels = None  # other classes than the model's, or none
    result = _measure(model, pixels, labels, settings)
    result |= {"png": float(png_bits(pixels).mean()), "histogram": _histogram(images.pixels, len(pixels))}
    if settings.out is not None:
        Path(settings.out).parent.mkdir(parents=True, exist_ok=True)
        Path(settings.out).write_text(json.dumps(result, indent=2) + "\n")
    kind = "with their classes" if result["labels"] else "without classes"
    print(
        f"{settings.data}: {len(pixels)} images {kind}, {settings.trace} trace, {result['evaluations']} evaluations a batch"
    )
    spread = (
        "" if result["standard_error"] is None else f" ± {result['standard_error']:.3f} (standard error over images)"
    )
    print(f"bits/dim   model {result['bits_per_dim']:.3f}{spread}")
    print(f"           PNG files {result['png']:.3f}, histogram of each pixel {result['histogram']:.3f}")


def _histogram(pixels: np.ndarray, num: int) -> float:
    """The baseline of the first num images, its histograms from the whole set."""
    return float(histogram_bits(np.asarray(pixels))[:num].mean())


def _measure(model: Any, pixels: np.ndarray, labels: np.ndarray | None, settings: Namespace) -> dict[str, Any]:
    """The numbers of the model."""
    starts = range(0, len(pixels), settings.batch_size)
    values, errors, evaluations = [], [], []
    for start in tracked(starts, "likelihood", unit="batches"):
        part = slice(start, start + settings.batch_size)
        found = estimate_bits_per_dim(
            model,
            torch.from_numpy(pixels[part]).permute(0, 3, 1, 2),
            None if labels is None else torch.from_numpy(labels[part]),
            trace=settings.trace,
            probes=settings.probes,
            probe=settings.probe,
            rtol=settings.rtol,
            atol=settings.atol,
            seed=settings.seed,
            first=start,
        )
        values += found.value.tolist()
        errors += [None if math.isnan(error) else error for error in found.standard_error.tolist()]
        evaluations.append(found.evaluations)
    spread = float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return {
        "model": str(settings.model),
        "data": settings.data,
        "num": len(values),
        "labels": labels is not None,
        "trace": settings.trace,
        "probes": settings.probes if settings.trace == "hutchinson" else None,
        "rtol": settings.rtol,
        "atol": settings.atol,
        "seed": settings.seed,
        "bits_per_dim": float(np.mean(values)),
        "standard_error": spread if math.isfinite(spread) else None,
        "evaluations": max(evaluations),
        "images": {"bits_per_dim": values, "standard_error_of_probes": errors},
        "version": __version__,
    }
