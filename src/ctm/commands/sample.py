"""Draw samples from a model into PNG files, one picture or an .npz."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jsonargparse import Namespace
from PIL import Image
from rich.console import Console
from rich.progress import track
from torch import Tensor

from ctm import __version__, sampling
from ctm.commands.common import Parser, command_parser
from ctm.model import load_model
from ctm.noise import karras_grid
from ctm.pictures import grid_picture, to_uint8

__all__ = ["device_of", "parse_labels", "parser", "run"]

_SAMPLERS = ("gamma", "euler", "heun", "dpmpp_2m")


def parser() -> Parser:
    result = command_parser(
        "sample",
        "Draw samples. A CTM jumps (γ-sampling); a diffusion model, or a CTM with --sampler, follows its denoiser.",
        "ctm sample models/digits-ctm --num 100 --steps 2 --labels 0-9 --out digits.png",
    )
    result.add_argument("model", type=str, help="model directory, run directory or hub id")
    result.add_argument(
        "--num", type=int, default=None, help="number of samples (default: 16, or one for each label given)"
    )
    result.add_argument(
        "--steps", type=int, default=None, help="jumps, or noise levels of the other samplers (default: 1, or 18)"
    )
    result.add_argument("--gamma", type=float, default=0.0, help="0: deterministic jumps … 1: consistency multistep")
    result.add_argument("--form", type=str, default="paper", help="form of γ-sampling: paper or code")
    result.add_argument(
        "--sampler",
        type=str,
        default=None,
        help=f"{', '.join(_SAMPLERS)} (default: gamma for a CTM, heun for a diffusion model; heun at 18: 35 evaluations)",
    )
    result.add_argument("--labels", type=str, default=None, help="classes, repeated over the samples: 0-9 or 3,3,7")
    result.add_argument("--seed", type=int, default=0, help="sample i depends on (seed, i) alone")
    result.add_argument(
        "--out", type=str, default="samples", help="a directory (PNG files), file.png (a grid) or file.npz"
    )
    result.add_argument("--batch_size", type=int, default=64, help="samples computed together")
    result.add_argument("--device", type=str, default=None, help="cpu, cuda, mps … (default: cuda where there is one)")
    return result


def parse_labels(text: str) -> list[int]:
    """'0-9' or '3,3,7', or both mixed, as a list. Raises ValueError for anything else."""
    chosen: list[int] = []
    for part in text.split(","):
        if part.strip() == "-1":  # no class
            chosen.append(-1)
            continue
        first, dash, last = part.strip().partition("-")
        if not first.isdigit() or (dash and not last.isdigit()) or (dash and int(last) < int(first)):
            raise ValueError(f"--labels takes classes such as 0-9 or 3,3,7, got {text!r}")
        chosen += range(int(first), int(last) + 1) if dash else [int(first)]
    return chosen


def run(settings: Namespace) -> None:
    """Sample and write, batch by batch."""
    model = load_model(settings.model)
    name = settings.sampler or ("gamma" if hasattr(model, "jump") else "heun")
    steps = settings.steps if settings.steps is not None else (1 if name == "gamma" else 18)
    grid, sampler = _sampler(model, name, steps, settings)
    cycle = None if settings.labels is None else parse_labels(settings.labels)
    num = settings.num if settings.num is not None else len(cycle or [0] * 16)
    asked = None if cycle is None else torch.tensor([cycle[i % len(cycle)] for i in range(num)])
    labels = sampling.class_labels(model, num, asked, settings.seed)
    out = Path(settings.out)
    _check_target(out, model.shape, num)
    device = device_of(settings.device)
    batches = sampling.stream(
        model,
        num,
        labels=labels,
        seed=settings.seed,
        batch_size=settings.batch_size,
        device=device,
        grid=grid,
        sampler=sampler,
    )
    total = -(-num // settings.batch_size)
    console = Console(stderr=True)
    shown = track(batches, "sampling", total=total, console=console, disable=not console.is_terminal)
    about = {
        "model": str(settings.model),
        "num": num,
        "sampler": name,
        "steps": steps,
        "gamma": settings.gamma if name == "gamma" else None,
        "form": settings.form if name == "gamma" else None,
        "labels": None if labels is None else labels.tolist(),
        "seed": settings.seed,
        "version": __version__,
    }
    _write(out, shown, labels, about)
    print(f"{num} samples in {out}")


def _sampler(model: Any, name: str, steps: int, settings: Namespace) -> tuple[Tensor, Callable[..., Tensor]]:
    """The grid and the sampler that were asked for."""
    if name not in _SAMPLERS:
        raise ValueError(f"--sampler must be one of {', '.join(_SAMPLERS)}, got {name!r}")
    ends = (model.sigma_min, model.sigma_max)
    if name != "gamma" and settings.gamma != 0:
        raise ValueError(f"--gamma belongs to jumps, and the sampler here is {name}: leave it out")
    if name == "gamma":
        if not hasattr(model, "jump"):
            raise ValueError(
                f"{settings.model} is a diffusion model and cannot jump: use --sampler heun, euler or dpmpp_2m"
            )
        sampling.gamma_plan([1.0, 0.5], settings.gamma, settings.form)  # checks both before anything is computed
        return karras_grid(steps, *ends), partial(sampling.gamma, gamma=settings.gamma, form=settings.form)
    if steps < 2:
        raise ValueError(f"--sampler {name} needs at least 2 --steps (noise levels), got {steps}")
    return torch.cat([karras_grid(steps - 1, *ends), torch.zeros(1)]), getattr(sampling, name)


def device_of(name: str | None) -> torch.device:
    """The device of that name, or the best there is. Raises ValueError for one that cannot be used."""
    chosen = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=chosen).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"--device {chosen} cannot be used here ({reason}): leave it out, or give cpu") from error


def _check_target(out: Path, shape: tuple[int, ...], num: int) -> None:
    """Raises ValueError for a target that cannot hold the samples, before any is made."""
    if out.suffix in (".npz", ".png") and out.is_dir():
        raise ValueError(f"--out {out} is a directory: give another name for the file")
    if out.suffix.lower() in (".jpg", ".jpeg", ".gif", ".webp", ".bmp", ".tif", ".tiff", ".npy"):
        raise ValueError(f"--out {out}: samples are written to a directory, FILE.png or FILE.npz")
    if out.suffix == ".npz":
        return
    others = [p.name for p in out.glob("*.png") if p.stem.isdigit() and int(p.stem) >= num] if out.is_dir() else []
    if others:
        raise ValueError(f"--out {out} holds more samples than --num {num} (e.g. {others[0]}): use another directory")
    if len(shape) != 3 or shape[0] not in (1, 3):
        raise ValueError(f"samples of shape {shape} are no pictures: give --out FILE.npz")
    if out.suffix != ".png" and out.is_file():
        raise ValueError(f"--out {out} is a file: give a directory, FILE.png or FILE.npz")


def _write(out: Path, batches: Iterator[Tensor] | Any, labels: Tensor | None, about: dict[str, Any]) -> None:
    """A directory of 000000.png … and sample.json, one grid, or an .npz with arr_0 and arr_1."""
    (out.parent if out.suffix in (".png", ".npz") else out).mkdir(parents=True, exist_ok=True)
    if out.suffix == ".png":
        columns = 10 if about["labels"] and len(about["labels"]) % 10 == 0 else None
        grid_picture(torch.cat(list(batches)), columns=columns).save(out)
    elif out.suffix == ".npz":
        _write_npz(out, batches, labels)
    else:
        index = 0
        for batch in batches:
            for pixels in to_uint8(batch).numpy():
                picture = Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels)
                picture.save(out / f"{index:06d}.png")
                index += 1
        (out / "sample.json").write_text(json.dumps(about, indent=2) + "\n")


def _write_npz(out: Path, batches: Any, labels: Tensor | None) -> None:
    """arr_0: uint8 (N, H, W, C) for pictures, float32 for other data; arr_1: labels where there are any."""
    parts = [to_uint8(batch).numpy() if batch.dim() == 4 else batch.numpy() for batch in batches]
    arrays = [np.concatenate(parts)] + ([] if labels is None else [labels.numpy()])
    temporary = out.with_name(f".{out.name}.writing")
    with temporary.open("wb") as file:
        np.savez(file, *arrays)
    os.replace(temporary, out)
