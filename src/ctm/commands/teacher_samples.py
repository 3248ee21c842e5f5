"""A teacher's own samples as the data that it is distilled on: made once, kept as an .npz with its digest, and gone on with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from ctm import __version__
from ctm.commands.output import finished_samples, write_samples
from ctm.data import Images
from ctm.distill.record import file_digest
from ctm.evaluation.extractors import checksum_of
from ctm.models import AnyModel
from ctm.noise import karras_grid, to_zero
from ctm.pictures import to_uint8
from ctm.progress import tracked
from ctm.sampling import heun
from ctm.sampling.generation import stream

__all__ = ["SAMPLES", "check_samples", "cycled_labels", "images_of", "make_samples"]

SAMPLES = Path("data") / "teacher-samples.npz"
_LEVELS, _BATCH = 18, 100


def cycled_labels(teacher: AnyModel, num: int) -> torch.Tensor | None:
    """The classes 0, 1, … in turn, so that each is there, int64 (num,); None for a teacher without classes."""
    return torch.arange(num) % teacher.num_classes if teacher.num_classes else None


def images_of(teacher: AnyModel, samples: torch.Tensor) -> Images:
    """Samples (n, C, H, W) as a data set, with classes in turn. Raises ValueError where they are no pictures, or where the
    teacher takes fields that nobody gives."""
    if len(teacher.shape) != 3 or teacher.shape[0] not in (1, 3):
        raise ValueError(f"the teacher's samples {tuple(teacher.shape)} are no pictures to be kept: give --data")
    if teacher.conditioner.given_fields:
        fields = ", ".join(teacher.conditioner.given_fields)
        raise ValueError(f"the teacher is conditioned on {fields}, which its own samples would lack: give --data")
    labels = cycled_labels(teacher, len(samples))
    pixels = np.ascontiguousarray(to_uint8(samples).numpy())
    names = list(getattr(teacher, "class_names", []))
    return Images(pixels, None if labels is None else labels.numpy(), names, "the teacher's samples")


def make_samples(teacher: AnyModel, name: str, out: Path, num: int, seed: int) -> str:
    """Write `num` samples of the teacher, by Heun's method with 35 evaluations, to out/data/teacher-samples.npz. Goes on where
    an earlier call was stopped. Returns the file's digest."""
    file, labels = out / SAMPLES, cycled_labels(teacher, num)
    about: dict[str, Any] = {
        "model": name,
        "weights": checksum_of(teacher),
        "num": num,
        "sampler": "heun",
        "steps": _LEVELS,
        "labels": None if labels is None else labels.tolist(),
        "seed": seed,
        "version": __version__,
    }
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        start = finished_samples(file, about) // _BATCH * _BATCH
        grid = to_zero(karras_grid(_LEVELS - 1, teacher.sigma_min, teacher.sigma_max))
        options: dict[str, Any] = {"sampler": heun, "grid": grid, "condition": labels, "seed": seed}
        batches = stream(teacher, num, batch_size=_BATCH, start=start, **options)
        total = -(-(num - start) // _BATCH)
        batches = tracked(batches, "samples of the teacher", total)
        write_samples(file, batches, labels, about, start, class_names=getattr(teacher, "class_names", ()))
    return file_digest(file)


def check_samples(out: Path, digest: str) -> None:
    """Raises ValueError where the kept samples are gone or are others than those of that digest."""
    file = out / SAMPLES
    if not file.is_file():
        raise ValueError(f"{file}, on which this run trains, is gone: put it back to go on, or use another --out")
    found = file_digest(file)
    if found != digest:
        raise ValueError(
            f"{file} has changed (digest {digest[:12]} then, {found[:12]} now): put it back to go on, or use another --out"
        )
