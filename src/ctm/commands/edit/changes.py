"""Edits that change the whole picture: stroke to image, denoising, interpolation and variations."""

from __future__ import annotations

from typing import Any

import torch
from jsonargparse import Namespace
from torch import Tensor

from ctm.commands.edit.common import (
    Edited,
    asked_for,
    asked_of_pictures,
    bar,
    each_condition,
    edit_parser,
    making,
    needs_denoiser,
    of_steps,
    reports,
)
from ctm.commands.edit.inputs import for_model, read
from ctm.conditions import repeat
from ctm.editing import denoise, interpolate, posterior_sample, stroke, variations
from ctm.models import AnyModel
from ctm.noise import karras_grid
from ctm.terminal.options import jumper
from ctm.terminal.parser import Parser

__all__ = [
    "denoised",
    "denoised_parser",
    "interpolated",
    "interpolated_parser",
    "stroked",
    "stroked_parser",
    "varied",
    "varied_parser",
]

_LEVEL = "in units of the range [−1, 1]: 0.1 is 12.75 of 255 levels"


def stroked_parser() -> Parser:
    result = edit_parser(
        "stroke",
        "Redraw a picture, e.g. a rough drawing: noise of level sigma is laid over it, and jumps remove it.",
        "models/fashion-mnist-ctm drawing.png --sigma 1 --labels 0 --out drawn.png",
        "image",
    )
    add = result.add_argument
    add("--sigma", type=float, required=True, help=f"level of the noise: the larger, the less is kept; {_LEVEL}")
    add("--gamma", type=float, default=1.0, help="1: new noise after each jump … 0: none, keeping more")
    add("--steps", type=int, default=8, help="jumps")
    add("--num", type=int, default=None, help="number of results (default: 4, or one for each label given)")
    return result


def denoised_parser() -> Parser:
    result = edit_parser(
        "denoise",
        "Remove noise of a known level: the mean of all clean pictures that it may be, and draws of them with --num.",
        "models/fashion-mnist-ctm noisy.png --sigma 0.3 --num 3 --out clean.png",
        "image",
    )
    add = result.add_argument
    add("--sigma", type=float, required=True, help=f"standard deviation of the picture's noise; {_LEVEL}")
    add("--num", type=int, default=0, help="clean pictures drawn beside the mean")
    add("--steps", type=int, default=64, help="evaluations of each draw")
    return result


def interpolated_parser() -> Parser:
    result = edit_parser(
        "interpolate",
        "Go from one picture to another: both become noise along the flow, and the noise between them pictures.",
        "models/fashion-mnist-ctm a.png b.png --labels 0,3 --num 8 --out between.png",
        "first",
        "second",
        labels="classes of both pictures, e.g. 3,7 (default: no class)",
        rows="pictures: two rows",
    )
    result.add_argument("--num", type=int, default=8, help="pictures, both ends among them")
    return result


def varied_parser() -> Parser:
    result = edit_parser(
        "vary",
        "Vary a picture: it becomes noise along the flow, which is turned towards other noise and becomes a picture again.",
        "models/fashion-mnist-ctm shirt.png --amount 0.3 --num 8 --labels 0 --out varied.png",
        "image",
        labels="the picture's class, e.g. 3 (default: no class)",
        rows="picture: one row",
    )
    result.add_argument("--amount", type=float, default=0.3, help="0: the picture itself … 1: fresh samples")
    result.add_argument("--num", type=int, default=4, help="number of results")
    return result


def stroked(model: AnyModel, settings: Namespace) -> Edited:
    """Results of stroke to image. Raises ValueError for unfitting pictures and options; so do the other three."""
    jumper(model, settings.model, "stroke to image needs a CTM")
    asked = asked_for(model, settings, settings.num)
    image = for_model(read(settings.image), settings.image, model)
    options: dict[str, Any] = {"steps": settings.steps, "gamma_share": settings.gamma, "seed": settings.seed}
    with bar("stroke") as advance:
        made = stroke(
            model,
            _on(model, image).expand(asked.count, *model.shape),
            settings.sigma,
            condition=asked.condition,
            callback=of_steps(advance, settings.steps),
            **options,
        )
    facts = {"sigma": settings.sigma, "gamma": settings.gamma, "steps": settings.steps} | asked.facts
    levels = karras_grid(settings.steps, model.sigma_min, settings.sigma)
    makings = [
        making("gamma", levels, label, settings.gamma, sigma=settings.sigma)
        for label in each_condition(asked.labels, asked.count)
    ]
    captions = reports(asked.labels, asked.count)
    return Edited([("input", image)], made, captions, facts=facts, makings=makings)


def denoised(model: AnyModel, settings: Namespace) -> Edited:
    """Results of denoising: the posterior mean, then draws."""
    needs_denoiser(model, settings)
    if settings.num < 0:
        raise ValueError(f"--num must be at least 0, got {settings.num}")
    asked = asked_of_pictures(model, settings, 1)
    picture = read(settings.image)
    image = for_model(picture, settings.image, model)
    if picture.size != (model.shape[2], model.shape[1]):
        print("denoise: resizing changes the noise; --sigma is taken to be what it is afterwards")
    x = _on(model, image)[None]
    made = [denoise(model, x, settings.sigma, asked.condition)]
    if settings.num:
        several = repeat(asked.condition, settings.num)
        with bar("denoise") as advance:
            options: dict[str, Any] = {"seed": settings.seed, "callback": of_steps(advance, settings.steps)}
            x = x.expand(settings.num, *model.shape)
            made.append(posterior_sample(model, x, settings.sigma, steps=settings.steps, condition=several, **options))
    facts = {"sigma": settings.sigma, "steps": settings.steps if settings.num else None} | asked.facts
    captions = ["mean", *(f"draw {i + 1}" for i in range(settings.num))]
    own = None if asked.labels is None else int(asked.labels[0])
    ends = torch.tensor([settings.sigma, model.sigma_min])
    levels = karras_grid(settings.steps, model.sigma_min, settings.sigma)
    makings = [making("denoise", ends, own, sigma=settings.sigma)]
    makings += [making("ancestral", levels, own, sigma=settings.sigma)] * settings.num
    return Edited([("input", image)], torch.cat(made), captions, facts=facts, makings=makings)


def interpolated(model: AnyModel, settings: Namespace) -> Edited:
    """Pictures on the way from the first picture to the second."""
    needs_denoiser(model, settings)
    asked = asked_of_pictures(model, settings, 2)
    first = for_model(read(settings.first), settings.first, model)
    second = for_model(read(settings.second), settings.second, model)
    with bar("interpolate") as advance:
        ends = (_on(model, first), _on(model, second))
        made = interpolate(model, *ends, settings.num, condition=asked.condition, progress=advance)
    off = float((made[[0, -1]].cpu().clamp(-1, 1) - torch.stack([first, second])).abs().max()) * 127.5
    print(f"interpolate: the ends come back from noise to within {off:.1f} of 255 levels")
    captions = [f"{i / (settings.num - 1):.0%}" for i in range(settings.num)]
    facts = {"deviation_of_ends": round(off, 4)} | asked.facts
    given = None if asked.labels is None else asked.labels.tolist()
    same = None if given is None or given[0] != given[1] else given[0]
    flow = making("flow", torch.tensor([model.sigma_max, model.sigma_min]), same)
    return Edited([("first", first)], made, captions, [("second", second)], facts, [flow] * settings.num)


def varied(model: AnyModel, settings: Namespace) -> Edited:
    """Variations of one picture."""
    needs_denoiser(model, settings)
    if settings.num < 1:
        raise ValueError(f"--num must be at least 1, got {settings.num}")
    asked = asked_of_pictures(model, settings, 1)
    image = for_model(read(settings.image), settings.image, model)
    with bar("vary") as advance:
        options: dict[str, Any] = {"condition": asked.condition, "seed": settings.seed, "progress": advance}
        made = variations(model, _on(model, image), settings.num, settings.amount, **options)
    facts = {"amount": settings.amount} | asked.facts
    label = None if asked.labels is None else int(asked.labels[0])
    flow = making("flow", torch.tensor([model.sigma_max, model.sigma_min]), label, amount=settings.amount)
    captions = reports(None, settings.num)
    return Edited([("input", image)], made, captions, facts=facts, makings=[flow] * settings.num)


def _on(model: AnyModel, x: Tensor) -> Tensor:
    """The tensor on the model's device."""
    return x.to(next(model.parameters()).device)
