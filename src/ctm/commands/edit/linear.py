"""Inpainting, super-resolution and colourisation: a part of the picture is known, and the model fills in the rest."""

from __future__ import annotations

import math
from typing import Any

from jsonargparse import Namespace
from torch import Tensor

from ctm.commands.edit.common import (
    Edited,
    asked_for,
    bar,
    each_condition,
    edit_parser,
    making,
    needs_denoiser,
    of_steps,
    reports,
)
from ctm.commands.edit.inputs import for_model, read, small_picture, to_fill
from ctm.editing import LinearOperator, averaging, greying, into_range, masking, replace, restoring_levels, solve_guided
from ctm.foreign.text import JSONObject
from ctm.models import AnyModel, DiffusionModel
from ctm.noise import karras_grid
from ctm.pictures import as_saved
from ctm.terminal.options import jumper
from ctm.terminal.parser import Parser

__all__ = ["colourise", "colourise_parser", "inpaint", "inpaint_parser", "superresolve", "superresolve_parser"]

_METHODS = ("replace", "guided")


def _parser(name: str, description: str, example: str) -> Parser:
    result = edit_parser(name, description, example, "image")
    add = result.add_argument
    add("--num", type=int, default=None, help="number of results (default: 4, or one for each label given)")
    add(
        "--method",
        type=str,
        default=None,
        help="replace: jumps, the known part put in after each (default for a CTM); guided: Euler, drawn to the known part by "
        "its gradient (default for a diffusion model)",
    )
    add("--steps", type=int, default=18, help="levels: jumps of replace, intervals of guided")
    add("--rounds", type=int, default=None, help="replace: jumps at each level (default: 2)")
    return result


def inpaint_parser() -> Parser:
    result = _parser(
        "inpaint",
        "Fill the masked part of a picture; the rest is kept exactly.",
        "models/fashion-mnist-ctm shirt.png --mask mask.png --labels 0 --out filled.png",
    )
    result.add_argument(
        "--mask",
        type=str,
        default=None,
        help="a picture of the image's size: white (at least 128 of 255) is filled, black is kept, transparent counts as white "
        "(default: the image's own transparent parts are filled)",
    )
    return result


def superresolve_parser() -> Parser:
    result = _parser(
        "superresolve",
        "Enlarge a small picture, of any size below the model's: the results' area averages are the small picture.",
        "models/fashion-mnist-ctm small.png --num 4 --out large.png",
    )
    result.add_argument(
        "--factor",
        type=float,
        default=None,
        help="first reduce the image (resized to the model's size) by this factor, whole or not, to compare with the image",
    )
    return result


def colourise_parser() -> Parser:
    return _parser(
        "colourise",
        "Colour a grey picture by a model of colour pictures; luma is kept. Of a colour picture only the luma is used.",
        "runs/emoji-ctm grey.png --num 4 --out coloured.png",
    )


def inpaint(model: AnyModel, settings: Namespace) -> Edited:
    """Results of inpainting. Raises ValueError for unfitting pictures, masks and options; so do the other two."""
    image = read(settings.image, masks=settings.mask is None)
    fill = to_fill(image, settings.image, settings.mask, model.shape[1])
    whole = for_model(image, settings.image, model)
    operator = masking(~fill)
    return _solve(model, settings, operator, operator.A(whole[None]), [("input", whole)])


def superresolve(model: AnyModel, settings: Namespace) -> Edited:
    """Enlargements of a small picture, or of a picture that is reduced first."""
    image, side = read(settings.image), model.shape[1]
    if settings.factor is None:
        small = small_picture(image, settings.image, model)
        return _solve(model, settings, averaging((side, side), (small.shape[1], small.shape[2])), small[None], [])
    if not math.isfinite(settings.factor) or not 1 < settings.factor <= side or round(side / settings.factor) == side:
        raise ValueError(f"--factor must make {side} pixels fewer: above 1 and at most {side}, got {settings.factor:g}")
    whole, pixels = for_model(image, settings.image, model), round(side / settings.factor)
    print(f"{settings.image}: reduced to {pixels}×{pixels}, by a factor of {side / pixels:.4g}")
    operator = averaging((side, side), (pixels, pixels))
    return _solve(model, settings, operator, operator.A(whole[None]), [("input", whole)])


def colourise(model: AnyModel, settings: Namespace) -> Edited:
    """Colourings of a picture's luma."""
    if model.shape[0] != 3:
        raise ValueError(f"{settings.model} makes grey pictures: colourising needs a model of 3 channels")
    grey = for_model(read(settings.image), settings.image, model, grey=True)
    y = greying().A(grey[None])
    return _solve(model, settings, greying(), y, [], guess=y.expand(1, 3, *y.shape[2:]))


def _solve(
    model: AnyModel,
    settings: Namespace,
    operator: LinearOperator,
    y: Tensor,
    before: list[tuple[str, Tensor]],
    *,
    guess: Tensor | None = None,
) -> Edited:
    """Results x with A·x = y and values in range. y (1, …). guess (1, …): the first guess of replacement; None: A⁺y."""
    method = settings.method or ("guided" if isinstance(model, DiffusionModel) else "replace")
    if method not in _METHODS:
        raise ValueError(f"--method must be replace or guided, got {method!r}")
    if method == "replace":
        jumper(model, settings.model, "use --method guided")
    else:
        needs_denoiser(model, settings)
    if method == "guided" and settings.rounds is not None:
        raise ValueError("--rounds belongs to --method replace: leave it out")
    asked = asked_for(model, settings, settings.num)
    count, device = asked.count, next(model.parameters()).device
    given = y.to(device).expand(count, *y.shape[1:])
    steps, rounds = settings.steps, 2 if settings.rounds is None else settings.rounds
    options: dict[str, Any] = {"steps": steps, "condition": asked.condition}
    with bar(settings.task) as advance:
        options |= {
            "seed": settings.seed,
            "callback": of_steps(advance, steps * (rounds if method == "replace" else 1)),
        }
        if method == "replace":
            first = None if guess is None else guess.to(device).expand(count, *guess.shape[1:])
            made = replace(model, operator, given, rounds=rounds, guess=first, **options)
        else:
            made = solve_guided(model, operator, given, **options)
    made = into_range(made, operator, given).cpu()
    kept = _deviation(operator, y, made)
    more = "; no picture with values in 0 … 255 fits it exactly" if kept > 1 else ""
    print(f"{settings.task}: what is known is kept to within {kept:.2f} of 255 levels{more}")
    facts = {"method": method, "steps": steps, "rounds": rounds if method == "replace" else None, "deviation": kept}
    facts |= asked.facts
    captions = reports(asked.labels, count)
    makings = [
        _making(model, settings, method, rounds if method == "replace" else None, label)
        for label in each_condition(asked.labels, count)
    ]
    return Edited([*before, ("known", y[0])], made, captions, facts=facts, makings=makings)


def _making(model: AnyModel, settings: Namespace, method: str, rounds: int | None, label: int | None) -> JSONObject:
    """How a result was made, for its claim."""
    if method == "replace":
        return making("restore", restoring_levels(model, settings.steps), label, 1.0, rounds=rounds)
    return making("guided", karras_grid(settings.steps, model.sigma_min, model.sigma_max), label)


def _deviation(operator: LinearOperator, y: Tensor, made: Tensor) -> float:
    """The largest |A·x − y| over the results as they are written (rounded and clamped), in levels of 255."""
    return round(float((operator.A(as_saved(made).double()) - y.double()).abs().max()) * 127.5, 4)
