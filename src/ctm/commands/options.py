"""Texts of the command line as values: classes, seeds, grids, devices. Each raises ValueError in a sentence."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from ctm.noise import index_grid, karras_grid, log_linear_grid

__all__ = ["parse_columns", "parse_grid", "parse_labels", "parse_seeds", "usable_device"]

GRID_HELP = "karras or karras:RHO, log, index:POINTS (of a discrete model's levels), or levels such as 80,2.5,0.002"


def _ranges(text: str) -> list[int] | None:
    """'0-3,7' as [0, 1, 2, 3, 7]; None for anything else."""
    chosen: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()) or (dash and int(last) < int(first)):
            return None
        chosen += range(int(first), int(last) + 1) if dash else [int(first)]
    return chosen


def parse_labels(text: str, classes: int = 0) -> list[int]:
    """'0-9', '3,3,7', both mixed, −1 for no class, or 'all' of so many classes."""
    if text.strip() == "all":
        if classes == 0:
            raise ValueError("--labels all: this model has no classes, leave --labels out")
        return list(range(classes))
    parts = [[-1] if part.strip() == "-1" else _ranges(part) for part in text.split(",")]
    if any(part is None for part in parts):
        raise ValueError(f"--labels takes classes such as 0-9 or 3,3,7, got {text!r}")
    return [label for part in parts for label in part or []]


def parse_seeds(text: str) -> list[int]:
    """'0-9' or '3,5,8'."""
    seeds = _ranges(text)
    if seeds is None:
        raise ValueError(f"--seeds takes numbers such as 0-9 or 3,5,8, got {text!r}")
    return seeds


def parse_grid(text: str, steps: int, sigma_min: float, sigma_max: float) -> Tensor:
    """steps + 1 float64 levels by name, or the levels given (then steps is not asked). See GRID_HELP."""
    name, colon, number = text.strip().partition(":")
    ends = {"sigma_min": sigma_min, "sigma_max": sigma_max, "dtype": torch.float64}
    try:
        if name == "karras":
            return karras_grid(steps, rho=float(number) if colon else 7.0, **ends)  # type: ignore[arg-type]
        if name == "index" and colon:
            return index_grid(steps, int(number), **ends)  # type: ignore[arg-type]
    except ValueError as error:
        if "could not convert" in str(error) or "invalid literal" in str(error):
            raise ValueError(f"--grid {text}: {number!r} is no number: it takes {GRID_HELP}") from error
        raise
    if text.strip() == "log":
        return log_linear_grid(steps, **ends)  # type: ignore[arg-type]
    levels = explicit_levels(text)
    if levels is None:
        raise ValueError(f"--grid takes {GRID_HELP}, got {text!r}")
    return torch.tensor(levels, dtype=torch.float64)


def explicit_levels(text: str | None) -> list[float] | None:
    """The levels of '80,2.5,0.002', None for anything else."""
    try:
        levels = [float(part) for part in (text or "").split(",")]
    except ValueError:
        return None
    return levels if len(levels) > 1 and all(math.isfinite(level) for level in levels) else None


def parse_columns(text: str | None, out: Path, classes: int) -> int | Literal["class"] | None:
    """How many columns a grid of samples has, or "class" for one a class; None: not said. classes: of the model."""
    if text is None:
        return None
    if out.suffix.lower() != ".png":
        raise ValueError(
            f"--columns {text} is for one picture, --out FILE.png, and --out is {out}: leave --columns out"
        )
    if text == "class":
        if classes == 0:
            raise ValueError("--columns class: this model has no classes, give a number")
        return "class"
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"--columns takes a number from 1 on, or class, got {text!r}")
    return int(text)


def usable_device(name: str | None) -> torch.device:
    """The device of that name, or the best there is. Raises ValueError for one that cannot be used."""
    chosen = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=chosen).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"--device {chosen} cannot be used here ({reason}): leave it out, or give cpu") from error
