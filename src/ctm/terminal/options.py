"""Texts of the command line as values: classes, seeds, grids, devices. Each function raises ValueError with a sentence."""

from __future__ import annotations

import math
import re
import shlex
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from jsonargparse import Namespace
from torch import Tensor

from ctm.console import as_typed
from ctm.data import listed_classes, tell
from ctm.data.conditions import fields_in
from ctm.files import suffix_of
from ctm.models import AnyModel, ConsistencyModel, DiffusionModel, TrajectoryModel
from ctm.noise import index_grid, karras_grid, log_linear_grid
from ctm.sampling import common
from ctm.terminal.parser import Parser

__all__ = [
    "add_data_options",
    "add_device_option",
    "add_peer_options",
    "check_steps",
    "data_options",
    "jumper",
    "numbers",
    "parse_columns",
    "parse_grid",
    "parse_labels",
    "parse_seeds",
    "usable_device",
]

_T = TypeVar("_T", int, float)

GRID_HELP = "karras or karras:RHO, log, index:POINTS (of a discrete model's levels), or levels such as 80,2.5,0.002"

_MANY_STEPS, _MOST_STEPS = 1_000, 1_000_000
_LONGEST_RANGE = 10_000_000  # numbers, each of which takes memory

_OTHER_MINUS = {"-1": "−1", "−1": "-1"}  # both mean no class
_PART = re.compile(r'\s*(?:"((?:[^"]|"")*)"\s*|([^",][^,]*|))(,|$)')


def _ranges(text: str) -> list[int] | None:
    """'0-3,7' as [0, 1, 2, 3, 7]; None for anything else."""
    chosen: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()) or (dash and int(last) < int(first)):
            return None
        if dash and int(last) - int(first) >= _LONGEST_RANGE:
            raise ValueError(f"{part.strip()} is a range of more than {_LONGEST_RANGE:,} numbers: give a shorter one")
        chosen += range(int(first), int(last) + 1) if dash else [int(first)]
    return chosen


def parse_labels(text: str, classes: int = 0, names: Sequence[str] = ()) -> list[int]:
    """Class numbers of '0-9', '3,3,7', 'Flags,Food', a mixture of these, −1 for no class, or 'all'.

    classes: number of the model's classes. names: of these classes, empty if unknown. A name is written as it is; it stands
    in double quotes if it has a comma or could be a number. Other capitals are accepted if they fit one class only, and the
    log says so. Raises ValueError for an unknown class, with a list of the known ones, and for a number that is also the
    name of another class."""
    text = unicodedata.normalize("NFC", text.strip())
    names = [unicodedata.normalize("NFC", name) for name in names]
    if text in names and "," in text:
        return _named(text, names)
    if text == "all":
        if "all" in names:
            raise ValueError(
                f"--labels all: is it every class, or the class named all? Give 0-{len(names) - 1}, or '\"all\"' in quotes"
            )
        if classes == 0:
            raise ValueError("--labels all: this model has no classes, leave --labels out")
        return list(range(classes))
    if "," in text and ("", False) in _parts(text):
        raise ValueError(f"--labels has nothing between two commas, or at an end: {text!r}: take the comma out")
    return [label for part, quoted in _parts(text) for label in _labels_of(part, quoted, classes, names)]


def _parts(text: str) -> list[tuple[str, bool]]:
    """The parts between commas, each with whether it stood in double quotes. Two quotes inside quotes are one quote."""
    parts, place = [], 0
    while place <= len(text):
        match = _PART.match(text, place)
        if match is None:
            raise ValueError(
                f"--labels takes classes such as 0-9, 3,3,7 or names, a quote in text that does not end: {text!r}"
            )
        quoted = match[1] is not None
        parts.append((match[1].replace('""', '"') if quoted else match[2].strip(), quoted))
        place = match.end() if match[3] else len(text) + 1
    return parts


def _labels_of(part: str, quoted: bool, classes: int, names: Sequence[str]) -> list[int]:
    """Class numbers that one part of --labels means."""
    numbers = None if quoted else [-1] if part in _OTHER_MINUS else _ranges(part)
    if numbers is None or (part in names and min(numbers) >= classes):
        return _named(part, names)
    named = [number for number, name in enumerate(names) if name == part]
    if named not in ([], numbers) and numbers == [-1]:
        raise ValueError(
            f"--labels {part}: is it no class, or the class named {part}, whose number is {named[0]}? Give {named[0]}, or "
            f"'\"{part}\"' in quotes, for the class, or {_OTHER_MINUS[part]}, with the other minus sign, for no class"
        )
    if named not in ([], numbers):
        raise ValueError(
            f"--labels {part}: is it the class number {part}, or the class named {part}, whose number is {named[0]}? Give "
            f"'\"{part}\"' in quotes for the name, or {named[0]}"
            + (f", or {part}-{part} for the number" if part.isdecimal() else "")
        )
    return numbers


def _named(part: str, names: Sequence[str]) -> list[int]:
    """Number of the class with that name."""
    if not names:
        raise ValueError(
            f"--labels takes classes such as 0-9 or 3,3,7, got {part!r}: this model keeps no names of classes"
        )
    exact = [number for number, name in enumerate(names) if name == part]
    found = exact or [number for number, name in enumerate(names) if name.casefold() == part.casefold()]
    if not found:
        known = listed_classes([as_typed(name) for name in names])
        raise ValueError(f"--labels: this model has no class {part!r}; it knows {known}{_hint(part, names)}")
    if len(found) > 1:
        numbers = " and ".join(f"{number} {as_typed(names[number])}" for number in found)
        raise ValueError(f"--labels {part} could be {numbers}: give the number")
    if not exact:
        tell([f"--labels {part} is taken as {found[0]} {as_typed(names[found[0]])}"])
    return found


def _hint(part: str, names: Sequence[str]) -> str:
    """How a name is given that needs quotes: the one that was meant, where it differs by blanks at its ends alone."""
    meant = next((name for name in names if name.strip().casefold() == part.strip().casefold()), None)
    if meant is not None:
        return f". Its blanks count: --labels {shlex.quote(as_typed(meant))}"
    quoted = any(as_typed(name) != name for name in names)
    return (
        ". A name with a comma, quotes or blanks at an end stands in double quotes, inside single ones"
        if quoted
        else ""
    )


def parse_seeds(text: str) -> list[int]:
    """The seeds of '0-9' or '3,5,8'."""
    seeds = _ranges(text)
    if seeds is None:
        raise ValueError(f"--seeds takes numbers such as 0-9 or 3,5,8, got {text!r}")
    return seeds


def parse_grid(text: str, steps: int, sigma_min: float, sigma_max: float) -> Tensor:
    """A grid of steps + 1 float64 levels by name, or the levels that the text gives (then `steps` is not used). See
    GRID_HELP."""
    name, colon, number = text.strip().partition(":")
    ends = {"sigma_min": sigma_min, "sigma_max": sigma_max, "dtype": torch.float64}
    try:
        if name == "karras":
            return karras_grid(steps, rho=float(number) if colon else 7.0, **ends)  # type: ignore[arg-type]
        if name == "index" and colon and int(number) > _LONGEST_RANGE:
            raise ValueError(f"--grid {text}: a discrete model has at most {_LONGEST_RANGE:,} levels")
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
    """The levels of '80,2.5,0.002'; None for any other text."""
    try:
        levels = [float(part) for part in (text or "").split(",")]
    except ValueError:
        return None
    return levels if len(levels) > 1 and all(math.isfinite(level) for level in levels) else None


def parse_columns(text: str | None, out: Path, classes: int) -> int | Literal["class"] | None:
    """Number of columns of a sample grid, "class" for one column a class, or None if nothing was given. classes: number of
    the model's classes."""
    if text is None:
        return None
    if suffix_of(out) != ".png":
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
    """The device of that name, or the best device there is. Raises ValueError for a device that cannot be used."""
    return common.usable_device(name or ("cuda" if torch.cuda.is_available() else "cpu"), "--device")


def add_device_option(parser: Parser) -> None:
    """Where a command computes, for `usable_device`."""
    words = "cpu, cuda, mps … (default: cuda where there is one)"
    parser.add_argument("--device", type=str, default=None, help=words)


def add_peer_options(parser: Parser) -> None:
    """Rows of other programs, for `ctm.evaluation.peers.peer_plans`."""
    parser.add_argument(
        "--peer",
        action="append",
        default=None,
        metavar="PEER[@STEPS]",
        help="another row: a pipeline of diffusers (directory or hub id), sampled by its own scheduler, or MODULE:OBJECT with "
        "denoise or jump; @1,2,4: its own steps; may be repeated",
    )
    words = "text file for pipelines that take text: one prompt, or a line for each class"
    parser.add_argument("--prompts", type=str, default=None, help=words)


def jumper(model: AnyModel, name: str, instead: str) -> ConsistencyModel | TrajectoryModel:
    """The model, which jumps. Raises ValueError for a diffusion model. name: as it was asked for; instead: what to do."""
    if isinstance(model, DiffusionModel):
        raise ValueError(f"{name} is a diffusion model and cannot jump: {instead}")
    return model


def add_data_options(parser: Parser) -> None:
    """Add the options that say how a file of --data is read, like `data.image` … of a recipe."""
    add = parser.add_argument
    add("--data_image", type=str, default=None, help="name of the array or column of images (default: the known names)")
    add("--data_label", type=str, default=None, help="name of the array or column of labels (default: the known names)")
    add(
        "--data_condition",
        type=str,
        default=None,
        help="arrays in the .npz that are fields of the condition, e.g. observation,goal (default: those of the model's names)",
    )
    add(
        "--data_max_gb",
        type=float,
        default=None,
        help="most memory for an .npz or .parquet (default: 1, or 10 × the file)",
    )


def data_options(settings: Namespace, models: Sequence[AnyModel] = ()) -> dict[str, Any]:
    """The options of `add_data_options` as arguments of `ctm.data.load_images`.

    models: those that are measured. Where --data_condition names no fields, the arrays in the .npz of --data that are named like
    a field of theirs are read; none where --condition (if the command has it) says none or names a file. Raises ValueError for a
    name that no model takes, and for names beside such a --condition."""
    takes = list(dict.fromkeys(name for model in models for name in model.conditioner.given_fields))
    named, other = settings["data_condition"], settings.get("condition")
    away = other not in (None, "own", "data")
    if named is None:
        fields = [] if away else fields_in(settings["data"], takes)
    else:
        fields = [name.strip() for name in named.split(",")]
        unknown = [name for name in fields if name not in takes]
        if unknown:
            known = f"the fields here are {', '.join(takes)}" if takes else "there is no model with fields here"
            raise ValueError(f"--data_condition {unknown[0]}: no model here takes it; {known}")
        if away:
            raise ValueError(f"--data_condition {named} names fields of the data, --condition {other} others: give one")
    return {name: settings[f"data_{name}"] for name in ("image", "label", "max_gb")} | {"condition": fields or None}


def numbers(text: str, kind: type[_T], option: str) -> list[_T]:
    """The numbers of '1,2,4'. Raises ValueError naming the option for any other text."""
    try:
        found = [kind(part) for part in text.split(",")]
    except ValueError as error:
        raise ValueError(f"{option} takes numbers such as 1,2,4, got {text!r}") from error
    return found


def check_steps(counts: Iterable[int], option: str = "--steps") -> None:
    """Say in one line what more than 1,000 steps cost. Raises ValueError for more than 1,000,000 steps, which no sampler here
    gains from."""
    most = max(counts, default=0)
    if most > _MOST_STEPS:
        raise ValueError(
            f"{option} takes at most {_MOST_STEPS:,} steps, got {most:,}: 1 to 4 jumps, or 18 levels, are usual"
        )
    if most > _MANY_STEPS:
        words = f"each sample takes {most:,} calls of the network, one after another"
        tell([f"{option} {most:,}: {words}; 1 to 4 jumps, or 18 levels of a diffusion sampler, are usual"])
