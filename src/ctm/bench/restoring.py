"""`ctm bench restoring`: super-resolution, inpainting and colourisation of real images, compared with estimates without a
model."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jsonargparse import Namespace
from rich.table import Table
from torch import Tensor

from ctm.bench.restoring_tasks import METHODS, TASKS, Score, Task, make_tasks
from ctm.bench.results import Results
from ctm.console import text_console
from ctm.data import load_images
from ctm.models import load_model
from ctm.models.protocol import RangedDenoiser, can_jump
from ctm.pictures import grid_picture, save_picture
from ctm.progress import tracked
from ctm.terminal.options import numbers
from ctm.terminal.parser import Parser, command_parser

__all__ = ["measure", "parser", "run", "table"]

_EXAMPLES = 6
_MOST_DRAWN = 16  # images of which several samples are drawn


def parser() -> Parser:
    """The options of the benchmark."""
    result = command_parser(
        "bench restoring",
        "Take images of a data set that a model has not seen, hide a part of each, restore it with the model, and compare with "
        "the true image: PSNR and LPIPS, beside bicubic enlargement, filling with the mean of the known pixels, and grey. A "
        "picture for each task (known, without a model, each method at each number of evaluations, truth) goes into a folder "
        "beside the results.",
        "ctm bench restoring --model models/fashion-mnist-ctm --data fashion-mnist --count 200",
    )
    add = result.add_argument
    add("--model", type=str, default="models/fashion-mnist-ctm", help="model directory, run directory or hub id")
    add("--data", type=str, default="fashion-mnist", help="as for ctm train")
    add("--split", type=str, default="test", help="train or test, where the data have both")
    add("--count", type=int, default=200, help="images, a random choice")
    add("--evaluations", type=str, default="1,2,4,18", help="calls of the network for one image, several")
    add("--tasks", type=str, default=None, help=f"{', '.join(TASKS)}, with commas (default: all that fit)")
    add("--factor", type=int, default=2, help="of super-resolution")
    add("--draws", type=int, default=8, help=f"samples of each of {_MOST_DRAWN} images for the PSNR of their mean")
    add("--seed", type=int, default=0, help="of the choice, the mask and the samples")
    add("--out", type=str, default="runs/bench/restoring.json", help="results file")
    add("--continue", action="store_true", help="add to a results file that exists, leaving out what it holds")
    return result


def run(settings: Namespace) -> None:
    """Measure what the results do not hold yet, draw pictures, print the tables."""
    for name in ("count", "draws"):
        if settings[name] < 2:
            raise ValueError(f"--{name} must be at least 2 for an error bar, got {settings[name]}")
    evaluations = numbers(settings.evaluations, int, "--evaluations")
    if min(evaluations) < 1:
        raise ValueError(f"--evaluations must be at least 1 each, got {settings.evaluations}")
    path = Path(settings.out)
    results = Results(path, go_on=settings["continue"])
    model = load_model(settings.model)
    tasks = make_tasks(_names(settings.tasks, model.shape), model.shape, settings.factor, settings.seed)
    truth = _choice(settings, model.shape)
    score = Score(truth)
    asked = {name: settings[name] for name in ("model", "data", "split", "factor", "draws", "seed")}
    asked |= {"count": len(truth), "evaluations": evaluations}
    entries = []
    for task in tracked(tasks, "restoring", unit="tasks"):
        name = f"{settings.model}/{settings.data}/{task.name}"
        if not _holds(results, name, asked):
            entry, picture = measure(model, task, score, evaluations, draws=settings.draws, seed=settings.seed)
            label = f"{Path(settings.model).name}-{task.name.replace(' ', '-').replace('×', 'x')}.png"
            save_picture(picture, path.with_suffix("") / label)
            results.add(name, asked | entry)
        entries.append(results.entries[name])
    console = text_console()
    console.width = max(console.width, 120)  # a row is one line
    for entry in entries:
        console.print(table(entry))
    console.print(f"results: {path}; pictures: {path.with_suffix('')}")


def _holds(results: Results, name: str, asked: Mapping[str, object]) -> bool:
    """Whether the results hold the entry. Raises ValueError for an entry that other settings made."""
    held = results.entries.get(name, asked)
    other = [f"{key} {held[key]}, not {value}" for key, value in asked.items() if held[key] != value]
    if other:
        raise ValueError(f"{results.path} holds {name} with {', '.join(other)}: name another --out")
    return name in results.entries


def _names(asked: str | None, shape: tuple[int, ...]) -> list[str]:
    if asked is None:
        return [name for name in TASKS if name != "colourisation" or shape[0] == 3]
    return [name.strip() for name in asked.split(",") if name.strip()]


def _choice(settings: Namespace, shape: tuple[int, ...]) -> Tensor:
    """`count` images of the set at random, or all images of a smaller set."""
    if len(shape) != 3:
        raise ValueError(f"{settings.model} is a model of vectors of {shape[0]} numbers: images are restored only")
    images = load_images(settings.data, shape[1], shape[0], settings.split)
    order = np.random.default_rng(settings.seed).permutation(len(images))[: settings.count]
    return images.batch(order)[0]


def measure(
    model: RangedDenoiser, task: Task, score: Score, evaluations: list[int], *, draws: int = 8, seed: int = 0
) -> tuple[dict[str, Any], Any]:
    """(a results entry, a picture of the first images). The entry has one row for each method and number of evaluations, and
    one without a model.

    A sample of image i depends on (seed, i) only; its further `draws` take the next seeds. A row has psnr, its paired gain
    over the estimate without a model, and lpips, each [mean, standard error]; for the first images psnr_of_mean, of the mean
    of their samples, and spread, the root of the samples' mean variance; and misfit, the largest |A·x − y|."""
    y = task.operator.A(score.truth)
    plain = task.estimate(y)
    rows = [{"method": task.plain, "evaluations": 0} | score(plain, plain) | {"misfit": _misfit(task, plain, y)}]
    shown = [task.operator.A_pinv(y), plain]
    usable = {name: method for name, method in METHODS.items() if can_jump(model) or not method.jumps}
    for name, method in usable.items():
        for count in evaluations:
            if count < method.evaluations:
                continue
            started = time.perf_counter()
            made = method.restore(model, task, y, count, seed)
            seconds = (time.perf_counter() - started) / len(made)
            row: dict[str, Any] = {"method": name, "evaluations": count} | score(made, plain)
            row |= {"misfit": _misfit(task, made, y), "seconds_per_image": round(seconds, 5)}
            few = y[:_MOST_DRAWN]
            several = [made[:_MOST_DRAWN]] + [
                method.restore(model, task, few, count, seed + d) for d in range(1, draws)
            ]
            rows.append(row | _of_several(torch.stack(several), score))
            shown.append(made)
    shown.append(score.truth)
    images = torch.stack([column[:_EXAMPLES] for column in shown], dim=1).flatten(0, 1)
    titles = ["known", task.plain, *(f"{row['method']} {row['evaluations']}" for row in rows[1:]), "truth"]
    return {"task": task.name, "columns": titles, "rows": rows}, grid_picture(images, len(shown), _scale(images))


def _scale(images: Tensor) -> int:
    """Enlargement in whole pixels: at least 3 for a pixel, for images about 96 wide."""
    return max(3, 96 // images.shape[-1])


def _misfit(task: Task, made: Tensor, y: Tensor) -> float:
    return float((task.operator.A(made) - y).abs().max())


def _of_several(samples: Tensor, score: Score) -> dict[str, object]:
    """samples (draws, B, …) of the first B images."""
    samples = samples.clamp(-1, 1)
    psnr = score.psnr(samples.mean(dim=0))
    deviation = samples.var(dim=0).mean().sqrt()
    return {"psnr_of_mean": round(float(psnr.mean()), 4), "spread": round(float(deviation), 4)}


def table(entry: dict[str, Any]) -> Table:
    """The rows of one task."""
    title = f"{entry['task']}: {entry['model']}, {entry['count']} images of {entry['data']}"
    result = Table("", "evaluations", "PSNR, dB", "gain, dB", "LPIPS", "PSNR of the mean", "spread", title=title)
    for row in entry["rows"]:
        values = [
            f"{row[name][0]:.{digits}f} ± {row[name][1]:.{digits}f}" if name in row else "" for name, digits in _COLUMNS
        ]
        more = [f"{row['psnr_of_mean']:.2f}", f"{row['spread']:.3f}"] if "spread" in row else ["", ""]
        result.add_row(row["method"], str(row["evaluations"] or ""), *values, *more)
    return result


_COLUMNS = (("psnr", 2), ("psnr_gain", 2), ("lpips", 3))
