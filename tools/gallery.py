"""Draw the pictures of docs/gallery.md: all of them, or those named.

    python tools/gallery.py                    # into docs/gallery
    python tools/gallery.py stroke guidance

Random numbers are those of seed 0; images are of the test split, which no model has seen. The emoji need the model of the recipe
emoji-ctm.yaml in runs/emoji-ctm and the pictures sorted by tools/emoji.py in data/emoji."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ctm import generate, load_model
from ctm.bench.restoring_tasks import Task, make_tasks
from ctm.data import load_images
from ctm.editing import denoise, interpolate, posterior_sample, replace, solve_guided, stroke, variations
from ctm.guidance import ClassifierFree
from ctm.noise import karras_grid
from ctm.pictures import grid_picture
from ctm.sampling import heun

TARGET = Path("docs/gallery")
HEADING = 14
Sheet = tuple[list[str], list[Tensor]]  # the headings of the columns, and each column's images (rows, C, H, W)


@cache
def student() -> Any:
    return load_model("models/fashion-mnist-ctm")


@cache
def teacher() -> Any:
    return load_model("models/fashion-mnist-teacher")


def clothes(rows: int) -> Tensor:
    """The first test images of `rows` classes."""
    images = load_images("fashion-mnist", split="test")
    labels = torch.as_tensor(images.labels)
    return images.batch([int((labels == label).nonzero()[0]) for label in range(rows)])[0]


def emoji(rows: int) -> tuple[Any, Tensor]:
    """The emoji CTM, and held-out emoji evenly through the set."""
    model = load_model("runs/emoji-ctm")
    images = load_images("data/emoji/test", model.shape[1], 3)
    return model, images.batch([len(images) * row // rows for row in range(rows)])[0]


def by_heun(model: Any, labels: Tensor) -> Tensor:
    return generate(model, len(labels), condition=labels, sampler=heun, grid=karras_grid(18))


def teacher_and_student() -> Sheet:
    labels = torch.arange(10)
    return ["teacher, 35", "CTM, 1"], [by_heun(teacher(), labels), generate(student(), 10, condition=labels)]


def steps() -> Sheet:
    labels = torch.arange(10)
    counts = (1, 2, 4, 8, 18)
    return [f"{count}" for count in counts], [generate(student(), 10, steps=k, condition=labels) for k in counts]


def restored(model: Any, truth: Tensor, task: Task, evaluations: tuple[int, ...] = (1, 2, 4, 18)) -> Sheet:
    """Known, baseline, replacement with 18 evaluations, guided from the baseline with 1 and 2, guided with 4 and 18, truth."""
    y = task.operator.A(truth)
    plain = task.estimate(y)
    titles, columns = ["known", task.plain], [task.operator.A_pinv(y), plain]
    titles.append("replaced 18")
    columns.append(replace(model, task.operator, y, steps=18, guess=plain))
    for count in evaluations:
        titles.append(f"guided {count}")
        columns.append(solve_guided(model, task.operator, y, steps=count, guess=plain if count <= 2 else None))
    return [*titles, "truth"], [*columns, truth]


def inpainting() -> Sheet:
    task = make_tasks(["inpainting"], (1, 28, 28), 2, 0)[0]
    return restored(student(), clothes(10), task)


def super_resolution() -> Sheet:
    task = make_tasks(["super-resolution"], (1, 28, 28), 4, 0)[0]
    return restored(student(), clothes(10), task)


def colourisation() -> Sheet:
    model, truth = emoji(6)
    return restored(model, truth, make_tasks(["colourisation"], (3, 32, 32), 2, 0)[0])


def drawings() -> Tensor:
    """Four things drawn with a thick pen in one grey each: a shirt, trousers, a bag, a shoe."""
    lines = [
        ([(9, 4), (19, 4), (26, 9), (24, 13), (20, 10), (20, 25), (8, 25), (8, 10), (4, 13), (2, 9)], 170),
        ([(9, 2), (19, 2), (20, 26), (15, 26), (14, 9), (12, 26), (8, 26)], 120),
        ([(4, 12), (24, 12), (24, 25), (4, 25)], 200),
        ([(3, 12), (8, 11), (14, 16), (25, 18), (26, 22), (3, 22)], 220),
    ]
    pictures = []
    for corners, grey in lines:
        picture = Image.new("L", (28, 28))
        ImageDraw.Draw(picture).polygon(corners, fill=grey)
        pictures.append(torch.from_numpy(np.array(picture, dtype=np.float32))[None] / 127.5 - 1)
    return torch.stack(pictures)


def strokes() -> Sheet:
    drawn = drawings()
    levels = (0.2, 0.5, 1.0, 2.0, 5.0, 20.0)
    made = [stroke(student(), drawn, level, steps=2) for level in levels]
    forgetful = [stroke(student(), drawn, level, steps=4, gamma_share=1.0) for level in (0.5, 2.0)]
    return ["drawing", *(f"{level}" for level in levels), "0.5 gamma 1", "2.0 gamma 1"], [drawn, *made, *forgetful]


def denoising() -> Sheet:
    titles: list[str] = []
    columns: list[Tensor] = []
    truth = clothes(8)
    for sigma in (0.3, 1.0):
        noisy = truth + sigma * torch.randn(truth.shape, generator=torch.Generator().manual_seed(0))
        draws = [posterior_sample(student(), noisy, sigma, seed=seed) for seed in (0, 1)]
        titles += [f"noise {sigma}", "mean", "draw", "draw"]
        columns += [noisy, denoise(student(), noisy, sigma), *draws]
    return [*titles, "truth"], [*columns, truth]


def interpolation() -> Sheet:
    truth = clothes(10)
    pairs = ((0, 3), (1, 3), (5, 9), (8, 4))
    rows = [interpolate(student(), truth[a], truth[b], 9, rtol=1e-3, atol=1e-3) for a, b in pairs]
    columns = list(torch.stack(rows, dim=1))
    return ["first", *(f"{share}/8" for share in range(1, 8)), "last"], columns


def varied() -> Sheet:
    truth = clothes(9)[[0, 8]]
    amounts = (0.0, 0.1, 0.2, 0.3, 0.5, 1.0)
    columns = [
        torch.cat([variations(student(), image, 3, amount, rtol=1e-3, atol=1e-3) for image in truth])
        for amount in amounts
    ]
    return ["image", *(f"{amount}" for amount in amounts)], [truth.repeat_interleave(3, dim=0), *columns]


def guidance() -> Sheet:
    labels = torch.arange(10)
    scales = (0.0, 1.0, 2.0, 4.0)
    guided = [generate(ClassifierFree(student(), scale), 10, steps=2, condition=labels) for scale in scales]
    heuns = [by_heun(ClassifierFree(teacher(), scale), labels) for scale in scales]
    titles = [f"{name} {scale:g}" for name in ("CTM", "teacher") for scale in scales]
    return titles, guided + heuns


SHEETS: dict[str, Callable[[], Sheet]] = {
    "teacher": teacher_and_student,
    "steps": steps,
    "inpainting": inpainting,
    "super-resolution": super_resolution,
    "colourisation": colourisation,
    "stroke": strokes,
    "denoising": denoising,
    "interpolation": interpolation,
    "variations": varied,
    "guidance": guidance,
}
ACROSS = ("teacher", "steps")  # whose columns are drawn as rows


def drawn(name: str, sheet: Sheet, scale: int = 3) -> Image.Image:
    """A picture with a heading over each column, or before each row."""
    titles, columns = sheet
    across = name in ACROSS
    images = torch.cat(columns) if across else torch.stack(columns, dim=1).flatten(0, 1)
    grid = grid_picture(images, len(columns[0]) if across else len(columns), scale).convert("RGB")
    font = ImageFont.load_default(size=11)
    margin = (80, 0) if across else (0, HEADING)
    picture = Image.new("RGB", (grid.width + margin[0], grid.height + margin[1]), "white")
    picture.paste(grid, margin)
    pen = ImageDraw.Draw(picture)
    for index, title in enumerate(titles):
        cell = (images.shape[-1] + 1) * scale * index
        place = (4, cell + images.shape[-2]) if across else (cell + 3, 0)
        pen.text(place, title, fill="black", font=font)
    return picture


def main(names: list[str]) -> None:
    """Raises SystemExit with a sentence for a name that is not known."""
    unknown = [name for name in names if name not in SHEETS]
    if unknown:
        sys.exit(f"there is no picture {', '.join(unknown)}: the names are {', '.join(SHEETS)}")
    TARGET.mkdir(parents=True, exist_ok=True)
    for name in names or SHEETS:
        path = TARGET / f"{name}.png"
        drawn(name, SHEETS[name]()).save(path, optimize=True)
        print(f"{path}: {path.stat().st_size // 1024} KB", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
