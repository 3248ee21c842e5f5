"""Recipes as arguments: a file, and each of its settings as an option."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ActionConfigFile, ArgumentParser, Namespace  # type: ignore[attr-defined]

from ctm.foreign.text import check_yaml, read_text
from ctm.terminal.list_entries import SetEntry, as_settings
from ctm.terminal.names import check_entries, restrict_names
from ctm.terminal.parser import Parser
from ctm.terminal.recipe_files import recipe_path
from ctm.terminal.train_help import EXAMPLE, TrainHelp
from ctm.training import Recipe
from ctm.training.recipe import NetworkDescription

__all__ = ["parse_recipe", "recipe_of", "settings_text", "train_parser"]

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


def train_parser() -> Parser:
    """The parser of `ctm train`: a recipe file, and each of its settings as an option."""
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


def settings_text(arguments: ArgumentParser, settings: Namespace) -> str:
    """The recipe alone as YAML: what config.yaml keeps."""
    kept = settings.clone()
    for name in (*_OWN, "__default_config__"):
        kept.pop(name, None)
    return arguments.dump(kept, skip_unset=False, skip_validation=True)


def parse_recipe(arguments: list[str]) -> tuple[Recipe, str]:
    """A recipe and its text from the arguments of `ctm train`."""
    own = train_parser()
    settings = own.parse_args(arguments)
    return recipe_of(own, settings), settings_text(own, settings)


def recipe_of(own: Parser, settings: Namespace) -> Recipe:
    """The recipe that parsed settings describe. Raises ValueError for an entry that may not stand there."""
    check_entries(settings)
    built = own.instantiate(settings)
    values: dict[str, Any] = {
        key: value for key, value in vars(built).items() if key not in _OWN and not key.startswith("_")
    }
    values["network"] = NetworkDescription(**settings.network.as_dict())
    return Recipe(**values)
