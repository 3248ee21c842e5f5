"""Train a diffusion teacher or a CTM by a recipe."""

from __future__ import annotations

import gc
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from jsonargparse import ActionConfigFile, ArgumentParser, Namespace  # type: ignore[attr-defined]

from ctm.commands.common import Parser
from ctm.commands.list_entries import SetEntry, as_settings
from ctm.commands.names import check_entries, restrict_names
from ctm.commands.recipes import OPEN_DATA, RECIPES, recipe_path
from ctm.commands.train_help import EXAMPLE, TrainHelp
from ctm.console import text_console
from ctm.foreign.text import check_yaml, read_text
from ctm.training import Recipe, dry_run, train
from ctm.training.recipe import NetworkDescription

__all__ = ["RECIPES", "parse_recipe", "parser", "run"]

_OWN = ("config", "out", "dry_run")


class _RecipeFile(ActionConfigFile):
    """--config: a path, or the name of a recipe that ships with the package."""

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> Any:
        recipe = str(values)
        written_out = "\n" in recipe or ": " in recipe
        try:
            recipe = recipe if written_out else str(recipe_path(recipe))
            check_yaml(recipe if written_out else read_text(Path(recipe)), recipe)
        except ValueError as error:
            parser.error(str(error))
        super().__call__(parser, cfg, recipe, option_string)


class _TrainParser(Parser):
    """Takes settings of a list's entries, such as --objectives.0.grid_points 10, beside all others."""

    def parse_args(self, args: Sequence[str] | None = None, *others: Any, **options: Any) -> Namespace:  # type: ignore[override]
        return super().parse_args(as_settings(sys.argv[1:] if args is None else args), *others, **options)


def parser() -> Parser:
    restrict_names()
    result = _TrainParser(
        prog="ctm train",
        description="Train by a recipe: a diffusion teacher, or a CTM that learns from one. The same command goes on where it "
        "stopped. A setting of one loss: --objectives.0.NAME VALUE, by its number or its class; so for ema, trackers, "
        "loss_factors.",
        epilog=f"Example: {EXAMPLE}",
        add_help=False,
    )
    result.add_argument(
        "-h", "--help", action=TrainHelp, help="the most used options; --help all: every one; --help CLASS"
    )
    result.add_argument("--config", action=_RecipeFile, help="recipe file (YAML), or the name of a shipped one")
    result.add_argument("--out", type=str, default=None, help="run directory (default: runs/NAME of the recipe)")
    result.add_argument(
        "--dry-run",
        action="store_true",
        help="build everything, take one step, print parameters, memory, evaluations and the expected time; write nothing",
    )
    SetEntry.add_to(result)
    result.add_class_arguments(Recipe, nested_key=None, as_group=False)
    return result


def _settings_text(arguments: ArgumentParser, settings: Namespace) -> str:
    """The recipe alone as YAML: what config.yaml keeps."""
    kept = settings.clone()
    for name in (*_OWN, "__default_config__"):
        kept.pop(name, None)
    return arguments.dump(kept, skip_unset=False, skip_validation=True)


def parse_recipe(arguments: list[str]) -> tuple[Recipe, str]:
    """A recipe and its text from the arguments of `ctm train`."""
    own = parser()
    settings = own.parse_args(arguments)
    return _instantiate(own, settings), _settings_text(own, settings)


def _instantiate(own: Parser, settings: Namespace) -> Recipe:
    check_entries(settings)
    built = own.instantiate(settings)
    values: dict[str, Any] = {
        key: value for key, value in vars(built).items() if key not in _OWN and not key.startswith("_")
    }
    values["network"] = NetworkDescription(**settings.network.as_dict())
    return Recipe(**values)


def run(settings: Namespace) -> None:
    """Train, then say where the model and the newest picture are; or measure a step, with --dry-run."""
    try:
        _run(settings)
    except (KeyboardInterrupt, SystemExit) as stop:  # all processes stop at the same step
        traceback.clear_frames(stop.__traceback__)
        _leave_group()
        raise
    _leave_group()


def _leave_group() -> None:
    """End the group of processes: where its threads outlive the interpreter, they abort it now and then.

    The data-parallel wrapper must be gone by then. If it were the last to hold the group, the group's end would wait with
    Python's lock for threads that wait for the lock."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        gc.collect()
        torch.distributed.destroy_process_group()


def _run(settings: Namespace) -> None:
    own = parser()
    recipe = _instantiate(own, settings)
    console = text_console()
    if settings.dry_run:
        lines = dry_run(recipe).lines()
        if PartialState().is_main_process:
            console.print("\n".join(lines))
        return
    if recipe.data.name.startswith(OPEN_DATA) and not Path(recipe.data.name).exists():
        raise ValueError("this recipe trains on pictures of your own: give --data.name FOLDER, a folder of them")
    configs = settings.get("config") or []
    name = Path(str(configs[-1])).stem if configs else "run"
    out = Path(settings.out or f"runs/{name}")
    directory = train(recipe, out, _settings_text(own, settings), title=out.name)
    if not PartialState().is_main_process:
        return
    pictures = sorted(directory.samples.glob("*.png"))
    shown = f", newest samples: {pictures[-1]}" if pictures else ""
    console.print(f"trained {recipe.steps} steps; model: {directory.model}{shown}")
