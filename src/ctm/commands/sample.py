"""Draw samples from a model into PNG files, one picture or an .npz."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jsonargparse import Namespace
from torch import Tensor

from ctm import __version__, sampling
from ctm.commands.fields import add_condition_option, condition_of_rows, given_fields, named_fields
from ctm.commands.marked import name_of, sample_claims
from ctm.commands.output import check_output, finished_samples, looked_at, scaling_record, write_samples
from ctm.commands.prompts import add_prompt_options, given_prompts, prompt_fields
from ctm.commands.screened import Gate, add_policy_options, gate, write_screened
from ctm.data.notes import tell
from ctm.evaluation.extractors import checksum_of
from ctm.files import suffix_of
from ctm.foreign.text import JSONObject
from ctm.guidance import at_scale
from ctm.lock import place_locked
from ctm.models import AnyModel, DiffusionModel
from ctm.models.grids import TunedGrid, tuned_for
from ctm.noise import to_zero
from ctm.progress import tracked
from ctm.sampling.common import check_start
from ctm.sampling.jumps import two_level_plan
from ctm.teachers.load import load_sampled
from ctm.teachers.pipelines import decoded, picture_shape
from ctm.terminal.options import (
    GRID_HELP,
    add_device_option,
    check_steps,
    explicit_levels,
    jumper,
    parse_columns,
    parse_grid,
    parse_labels,
    parse_seeds,
    usable_device,
)
from ctm.terminal.parser import Parser, command_parser

__all__ = ["parser", "run"]

_JUMPS = ("gamma", "consistency", "two_level")
_DENOISERS = ("euler", "heun", "dpmpp_2m", "midpoint", "ancestral", "dpmpp_2m_sde")
_SAMPLERS = ("gamma", *_DENOISERS, *_JUMPS[1:])
_NOISE = {  # options of samplers that add noise, with what leaves them as they are
    "churn": 0.0,
    "churn_min": 0.0,
    "churn_max": float("inf"),
    "churn_noise": 1.0,
    "eta": 1.0,
}
_TAKES = {"heun": ("churn", "churn_min", "churn_max", "churn_noise"), "ancestral": ("eta",)}
_TAKES["midpoint"] = _TAKES["heun"]
_DTYPES = {"float32": torch.float32, "float64": torch.float64}


def parser() -> Parser:
    result = command_parser(
        "sample",
        "Draw samples. A CTM jumps (γ-sampling); a diffusion model, or a CTM with --sampler, follows its denoiser.",
        "ctm sample models/digits-ctm --num 100 --steps 2 --labels 0-9 --out digits.png",
    )
    add = result.add_argument
    add("model", type=str, help="model directory, run directory or hub id")
    add("--num", type=int, default=None, help="number of samples (default: 16, or one for each label or seed given)")
    add("--steps", type=int, default=None, help="jumps, or noise levels of the other samplers (default: 1, or 18)")
    add("--gamma", type=float, default=None, help="0 (the default): deterministic jumps … 1: consistency multistep")
    add("--form", type=str, default="paper", help="form of γ-sampling: paper or code")
    add(
        "--sampler",
        type=str,
        default=None,
        help=f"{', '.join(_SAMPLERS)} (default: gamma for a CTM, heun for a diffusion model; heun at 18: 35 evaluations)",
    )
    add(
        "--grid",
        type=str,
        default=None,
        help=f"noise levels: {GRID_HELP} (default: those that ctm tune chose, else karras)",
    )
    add("--churn", type=float, default=0.0, help="noise of heun and midpoint: raise the level by churn/steps of itself")
    add("--churn_min", type=float, default=0.0, help="the lowest level at which they churn")
    add("--churn_max", type=float, default=float("inf"), help="the highest")
    add("--churn_noise", type=float, default=1.0, help="scale of that noise (EDM: 1.003 … 1.007)")
    add("--eta", type=float, default=1.0, help="share of ancestral's noise that is fresh: 0 … 1")
    add("--labels", type=str, default=None, help="classes, repeated over the samples: 0-9, 3,3,7, names or all")
    add_condition_option(result, "samples")
    add_prompt_options(result)
    add("--cfg", type=float, default=None, help="classifier-free guidance: 0 no label, 1 conditional, above 1 guided")
    add("--seed", type=int, default=0, help="sample i depends on (seed, i) alone")
    add("--noise_stream", choices=["v1", "v2"], default="v1", help="v2: the noise of all samples at once, by a counter")
    add("--seeds", type=str, default=None, help="one sample for each seed, the first of it: 0-9 or 3,5,8")
    add("--out", type=str, default="samples", help="a directory (PNG files), file.png (a grid), file.npz or .npy")
    add(
        "--columns",
        type=str,
        default=None,
        help="columns of file.png: a number, or class for one a class (of all classes, unless --labels names some)",
    )
    add("--batch_size", type=int, default=64, help="samples computed together")
    add_policy_options(result)
    add_device_option(result)
    add("--dtype", type=str, default="float32", help="of the state between network calls: float32 or float64")
    return result


def run(settings: Namespace) -> None:
    """Draw samples and write them, batch by batch."""
    check_steps([] if settings.steps is None else [settings.steps])
    model = load_sampled(settings.model)
    name = settings.sampler or ("heun" if isinstance(model, DiffusionModel) else "gamma")
    tuned = _tuned(model, name, settings)
    settings.gamma = (settings.gamma or 0.0) if tuned is None else tuned.gamma
    grid, sampler = _sampler(model, name, settings, tuned)
    seeds = None if settings.seeds is None else parse_seeds(settings.seeds)
    out = Path(settings.out)
    columns = parse_columns(settings.columns, out, model.num_classes)
    cycle = list(range(model.num_classes)) if columns == "class" else None  # all of them, unless --labels names some
    if settings.labels is not None:
        cycle = parse_labels(settings.labels, model.num_classes, model.class_names)
    prompts = given_prompts(settings, model)
    fields = prompt_fields(model, prompts) or given_fields(settings, model)
    num = _number(settings, cycle, seeds, fields)
    if columns is None and 1 < len(prompts) < num and num % len(prompts) == 0:
        columns = len(prompts)  # of a picture: one for each prompt
    asked = None if cycle is None else torch.tensor([cycle[i % len(cycle)] for i in range(num)])
    seed = settings.seed if seeds is None else seeds
    labels = sampling.class_labels(model, num, asked, seed)
    condition = condition_of_rows(labels, fields, num)
    tell(_idle_columns(columns, labels, num))
    if settings.dtype not in _DTYPES:
        raise ValueError(f"--dtype must be one of {', '.join(_DTYPES)}, got {settings.dtype!r}")
    check_output(out, picture_shape(model), num, values=scaling_record(model) != {})
    about = _about(settings, name, num, grid, labels, seed) | {"weights": checksum_of(model)}
    about |= scaling_record(model)
    about |= {"prompts": prompts} if prompts else named_fields(settings, fields)
    with gate(settings, "ctm sample") as policy:
        about |= _admitted(policy, model, settings, labels, fields, num)
        with place_locked(out):
            options = {"num": num, "seed": seed, "grid": grid, "sampler": sampler, "condition": condition}
            written = _sample(model, settings, out, about, labels, options, columns, policy)
    if tuned is not None:
        levels = ", ".join(f"{level:g}" for level in tuned.levels)
        print(f"levels tuned for this model: {levels}, γ = {tuned.gamma:g}; --grid karras gives the plain ones")
    if policy is None:
        print(f"{num} samples in {out}")
    else:
        print(f"{written} of {num} samples in {out}" if written else f"none of {num} samples is written")


def _sample(
    model: AnyModel,
    settings: Namespace,
    out: Path,
    about: JSONObject,
    labels: Tensor | None,
    asked: dict[str, Any],
    columns: int | Literal["class"] | None,
    policy: Gate | None,
) -> int:
    """Make the samples that are not there yet, and write each batch as it is made. Returns the number of all that are written,
    and says which the policy withholds."""
    num, tell = asked["num"], None
    if policy is not None:
        policy.recall(out)
        nonces = policy.marker.nonces(asked["seed"], num)
        asked = {**asked, "watermark": (policy.marker.key, nonces)}
        tell = sample_claims(about, name_of(str(settings.model)), asked["condition"], nonces)
        _tell_of_marks(about, settings)
        if picture_shape(model) != tuple(model.shape):
            print("watermark: the mark is in the latents, where ctm verify does not look; text and manifest are there")
    done = finished_samples(out, about, () if policy is None else policy.withheld)
    # the batches of an unbroken run: in others the last bits of a sample may differ
    start = done if done == num else done - done % max(1, settings.batch_size)
    device = usable_device(settings.device)
    batches = sampling.stream(
        model.to(device) if settings.cfg is None else at_scale(model.to(device), settings.cfg),
        batch_size=settings.batch_size,
        device=device,
        dtype=_DTYPES[settings.dtype],
        noise_stream=settings.noise_stream,
        start=start,
        **asked,
    )
    total = -(-(num - start) // settings.batch_size)
    pictures = (decoded(model, batch) for batch in tracked(batches, "sampling", total, unit="batches"))
    shown = looked_at(pictures, start, values="scaling" in about)
    if policy is None or tell is None:
        write_samples(out, shown, labels, about, start, columns)
        return int(num)
    write_screened(policy, out, shown, about, tell, start, columns)
    print("".join(f"{line}\n" for line in policy.lines()), end="")
    return int(num - len([number for number in policy.withheld if number < num]))


def _admitted(
    policy: Gate | None, model: AnyModel, settings: Namespace, labels: Tensor | None, fields: Collection[str], num: int
) -> dict[str, object]:
    """What the record of the samples says of the policy. Raises ValueError for what it does not allow."""
    if policy is None:
        return {}
    if suffix_of(Path(settings.out)) in (".npz", ".npy"):
        raise ValueError(f"--out {settings.out}: with --policy samples are pictures, give a directory or FILE.png")
    known = () if labels is None else labels.tolist()
    drawn = settings.labels is None and settings.columns != "class"
    policy.admit(model, str(settings.model), num, known, fields, guidance=settings.cfg, drawn=drawn)
    return {"policy": policy.policy_digest, "watermark": policy.marker.fingerprint}


def _tell_of_marks(about: dict[str, Any], settings: Namespace) -> None:
    """Say it where noise that is added on the way replaces the marked noise."""
    name, jumps = about["sampler"], about["steps"]
    fresh = {"gamma": jumps > 1 and about["gamma"], "consistency": jumps > 1, "ancestral": settings.eta}
    fresh |= {"two_level": True, "dpmpp_2m_sde": True}
    if fresh.get(name, settings.churn):
        words = f"γ = {about['gamma']:g} with {jumps} jumps" if name == "gamma" else name
        print(f"watermark: {words} adds fresh noise on the way, which can hide the mark; text and manifest are there")


def _tuned(model: AnyModel, name: str, settings: Namespace) -> TunedGrid | None:
    """The grid that the model keeps for this number of steps. None if the settings ask for a grid, guidance, another γ or
    another form."""
    if name != "gamma" or settings.grid is not None or settings.cfg is not None or settings.form != "paper":
        return None
    return tuned_for(model, 1 if settings.steps is None else settings.steps, settings.gamma)


def _about(
    settings: Namespace, name: str, num: int, grid: Tensor, labels: Tensor | None, seed: int | list[int]
) -> dict[str, object]:
    """The record that sample.json keeps."""
    return {
        "model": str(settings.model),
        "num": num,
        "sampler": name,
        "steps": len(grid) - 1,
        "grid": [float(f"{level:.6g}") for level in grid.tolist()],
        "gamma": settings.gamma if name == "gamma" else None,
        "form": settings.form if name == "gamma" else None,
        "cfg": settings.cfg,
        **{option: settings[option] for option in _TAKES.get(name, ()) if settings[option] != _NOISE[option]},
        "labels": None if labels is None else labels.tolist(),
        "seed": seed,
        "dtype": settings.dtype,
        **({} if settings.noise_stream == "v1" else {"noise_stream": settings.noise_stream}),
        "version": __version__,
    }


def _idle_columns(columns: int | Literal["class"] | None, labels: Tensor | None, num: int) -> list[str]:
    """A line where --columns changes less than it says: for samples of one class, or more columns than samples."""
    if columns == "class":
        classes = sorted(set([] if labels is None else labels.tolist()))
        if len(classes) == 1:
            return [f"--columns class: all samples are of class {classes[0]}, so the picture has one column"]
    elif columns is not None and columns > num:
        return [f"--columns {columns}: there are {num} samples, so the picture has {num} columns"]
    return []


def _number(
    settings: Namespace, cycle: list[int] | None, seeds: list[int] | None, fields: dict[str, np.ndarray]
) -> int:
    """The number of samples to make."""
    if seeds is None:
        rows = len(cycle) if cycle else len(next(iter(fields.values()))) if fields else 16
        return settings.num if settings.num is not None else rows
    if settings.num not in (None, len(seeds)):
        raise ValueError(
            f"--seeds gives {len(seeds)} seeds, one sample each, but --num is {settings.num}: leave one out"
        )
    if settings.seed != 0:
        raise ValueError(f"--seed {settings.seed} and --seeds exclude each other: leave one out")
    return len(seeds)


def _sampler(
    model: AnyModel, name: str, settings: Namespace, tuned: TunedGrid | None = None
) -> tuple[Tensor, Callable[..., Tensor]]:
    """(grid, sampler) as the settings ask, or the tuned ones."""
    if tuned is not None:
        return tuned.grid(torch.float64), partial(sampling.gamma, gamma=tuned.gamma)
    if name not in _SAMPLERS:
        raise ValueError(f"--sampler must be one of {', '.join(_SAMPLERS)}, got {name!r}")
    if name != "gamma" and settings.gamma != 0:
        raise ValueError(f"--gamma belongs to γ-sampling, and the sampler here is {name}: leave it out")
    if name != "gamma" and settings.form != "paper":
        raise ValueError(f"--form belongs to γ-sampling, and the sampler here is {name}: leave it out")
    noise = {option: settings[option] for option, none in _NOISE.items() if settings[option] != none}
    unfitting = [option for option in noise if option not in _TAKES.get(name, ())]
    if unfitting:
        takers = [sampler for sampler, options in _TAKES.items() if unfitting[0] in options]
        raise ValueError(
            f"--{unfitting[0]} belongs to {' and '.join(takers)}, and the sampler here is {name}: leave it out"
        )
    if name in _JUMPS:
        jumper(model, settings.model, "use --sampler heun, euler or dpmpp_2m")
    ends = (model.sigma_min, model.sigma_max)
    grid = explicit_levels(settings.grid)
    if grid is not None and settings.steps is not None:
        raise ValueError(f"--grid gives the {len(grid)} levels themselves: leave --steps out")
    if name == "two_level":
        if grid is None:
            raise ValueError("--sampler two_level needs --grid t0,s,s',t_end, e.g. 80,0.5,2,0.002")
        levels = torch.tensor(grid, dtype=torch.float64)
        two_level_plan(grid)
        return levels, sampling.two_level
    steps = settings.steps if settings.steps is not None else (1 if name in _JUMPS else 18)
    if name in _JUMPS:
        sampling.gamma_plan([1.0, 0.5], settings.gamma, settings.form)  # checks both before anything is computed
        levels = check_start(
            torch.zeros(1).double(), parse_grid(settings.grid or "karras", steps, *ends), zero_end=False
        )
        options = {"gamma": settings.gamma, "form": settings.form} if name == "gamma" else {}
        return levels, partial(getattr(sampling, name), **options)
    if grid is None and steps < 2:
        raise ValueError(f"--sampler {name} needs at least 2 --steps (noise levels), got {steps}")
    levels = parse_grid(settings.grid or "karras", steps - 1, *ends)
    levels = levels if grid is not None else to_zero(levels)
    for option, value in noise.items():
        if value < 0 or (option == "eta" and value > 1):
            allowed = "in [0, 1]" if option == "eta" else "at least 0"
            raise ValueError(f"--{option} must be {allowed}, got {value:g}")
    return check_start(levels[:1], levels, zero_end=True), partial(getattr(sampling, name), **noise)
