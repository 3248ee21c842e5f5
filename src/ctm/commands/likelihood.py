"""Bits per dimension of a data set under a model."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import torch
from jsonargparse import Namespace

from ctm import __version__
from ctm.conditions import Condition, labels_of, rows
from ctm.data import Images, epoch_order, load_images, match_classes, tell
from ctm.data.conditions import fields_for, names_of
from ctm.evaluation.conditions import with_labels
from ctm.evaluation.lossless import histogram_bits, png_bits
from ctm.evaluation.number import mean_with_error
from ctm.files import suffix_of, write_whole
from ctm.likelihood import estimate_bits_per_dim
from ctm.models import AnyModel, load_model
from ctm.progress import tracked
from ctm.teachers.pipelines import check_pictures
from ctm.terminal.options import add_data_options, data_options, parse_labels, usable_device
from ctm.terminal.parser import Parser, command_parser
from ctm.terminal.paths import check_place

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
    add_data_options(result)
    add("--split", type=str, default="test", help="train or test, where the data set has both")
    add("--num", type=int, default=100, help="number of images, drawn from the whole set by --seed")
    add(
        "--labels",
        type=str,
        default="own",
        help="own: the images' classes; none; or one class for all, by name or number",
    )
    add(
        "--condition",
        type=str,
        default="own",
        help="own: the images' fields, as --data_condition names them; none: the model's fields are left out",
    )
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
    add(
        "--seed",
        type=int,
        default=0,
        help="of the draw; dequantisation and probes of image i depend on (seed, i) alone",
    )
    add("--batch_size", type=int, default=64, help="images computed together")
    add("--device", type=str, default=None, help="cpu, cuda … (default: cuda where there is one)")
    add("--out", type=str, default=None, help="a JSON file for the numbers of all images together and of each")
    return result


def run(settings: Namespace) -> None:
    """Measure the images batch by batch, then print the table."""
    model = load_model(settings.model)
    check_pictures(model, settings.model, "ctm likelihood")
    if len(model.shape) != 3 or model.shape[0] not in (1, 3) or model.shape[1] != model.shape[2]:
        raise ValueError(f"{settings.model} is a model of shape {model.shape}: bits per dimension need square images")
    if settings.num < 1 or settings.batch_size < 1:
        raise ValueError(f"--num and --batch_size must be at least 1, got {settings.num} and {settings.batch_size}")
    if settings.out is not None and (Path(settings.out).is_dir() or suffix_of(Path(settings.out)) != ".json"):
        raise ValueError(f"--out {settings.out} must name a .json file")
    if settings.out is not None:
        check_place(Path(settings.out))
    model = model.to(usable_device(settings.device))
    channels, size, _ = model.shape
    if settings.condition not in ("own", "none"):
        raise ValueError(
            f"--condition must be own or none, got {settings.condition!r}: an image's likelihood is under its own fields"
        )
    every = _labels_for_all(settings.labels, model)
    images = load_images(settings.data, size, channels, settings.split, **data_options(settings, [model]))
    drawn = epoch_order(len(images), 0, min(settings.num, len(images)), settings.seed)
    pixels = np.array(images.pixels[drawn])  # a copy: the set may be read-only
    labels = _own_labels(model, images) if settings.labels == "own" else every
    labels = labels if labels is None else np.broadcast_to(labels, len(images))[drawn]
    fields = {name: values[drawn] for name, values in _own_fields(model, images, settings).items()}
    condition = with_labels(fields, None if labels is None else torch.from_numpy(np.ascontiguousarray(labels)))
    result = _measure(model, pixels, condition, settings) | {"drawn": drawn.tolist(), "fields": names_of(fields)}
    result |= {"png": float(png_bits(pixels).mean()), "histogram": _histogram(images.pixels, drawn)}
    if settings.out is not None:
        write_whole(Path(settings.out), (json.dumps(result, indent=2) + "\n").encode())
    kind = "with their classes" if result["labels"] else "without classes"
    kind += f" and with their {', '.join(names_of(fields))}" if fields else ""
    share = (
        f"all {len(pixels)} images" if len(pixels) == len(images) else _drawn_in_words(len(pixels), images, settings)
    )
    print(f"{settings.data}: {share} {kind}, {settings.trace} trace, {result['evaluations']} evaluations a batch")
    spread = (
        "" if result["standard_error"] is None else f" ± {result['standard_error']:.3f} (standard error over images)"
    )
    print(f"bits/dim   model {result['bits_per_dim']:.3f}{spread}")
    print(f"           PNG files {result['png']:.3f}, histogram of each pixel {result['histogram']:.3f}")


def _drawn_in_words(count: int, images: Images, settings: Namespace) -> str:
    return f"{count} of {len(images)} images, drawn with seed {settings.seed},"


def _labels_for_all(text: str, model: AnyModel) -> np.ndarray | None:
    """The class that --labels names for all images; None for `own` and `none`."""
    if text in ("own", "none"):
        if text in model.class_names:
            raise ValueError(f"--labels {text}: a class of the model has this name, too: give its number")
        return None
    chosen = parse_labels(text, model.num_classes, model.class_names)
    if len(chosen) != 1 or not -1 <= chosen[0] < model.num_classes:
        raise ValueError(f"--labels must be own, none or one class that the model knows, got {text!r}")
    return np.array(chosen, dtype=np.int64)


def _own_labels(model: AnyModel, images: Images) -> np.ndarray | None:
    """The images' labels in the model's numbers; None where the data or the model have no classes."""
    if images.labels is not None and not model.num_classes:
        tell(["the labels are not used, for the model knows no classes"], images.name)
    if images.labels is None or not model.num_classes:
        return None
    remedy = "; --labels none leaves the classes out"
    numbers = match_classes(images.class_names, images.labels, model, data=images.name, remedy=remedy)
    return images.labels if numbers is None else images.renumbered(numbers, model.class_names).labels


def _own_fields(model: AnyModel, images: Images, settings: Namespace) -> dict[str, np.ndarray]:
    """The images' fields that the model takes, (N, …) each. Lines say which are left out."""
    if settings.condition == "none":
        return {}
    fields, lines = fields_for(model.conditioner, images.fields, data=images.name)
    tell(lines, images.name)
    return fields


def _histogram(pixels: np.ndarray, drawn: np.ndarray) -> float:
    """The histogram baseline of the drawn images. Its histograms come from the whole set."""
    return float(histogram_bits(np.asarray(pixels))[drawn].mean())


def _measure(model: AnyModel, pixels: np.ndarray, condition: Condition, settings: Namespace) -> dict[str, object]:
    """The model's numbers over the images, as --out keeps them."""
    starts = range(0, len(pixels), settings.batch_size)
    values, errors, evaluations = [], [], []
    for start in tracked(starts, "likelihood", unit="batches"):
        part = slice(start, start + settings.batch_size)
        found = estimate_bits_per_dim(
            model,
            torch.from_numpy(pixels[part]).permute(0, 3, 1, 2),
            rows(condition, part),
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
    mean = mean_with_error(torch.tensor(values, dtype=torch.float64))
    return {
        "model": str(settings.model),
        "data": settings.data,
        "num": len(values),
        "labels": labels_of(condition) is not None,
        "trace": settings.trace,
        "probes": settings.probes if settings.trace == "hutchinson" else None,
        "rtol": settings.rtol,
        "atol": settings.atol,
        "seed": settings.seed,
        "bits_per_dim": mean.value,
        "standard_error": None if mean.error is None or not math.isfinite(mean.error) else mean.error,
        "evaluations": max(evaluations),
        "images": {"bits_per_dim": values, "standard_error_of_probes": errors},
        "version": __version__,
    }
