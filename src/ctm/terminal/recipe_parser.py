"""Recipes as arguments: a file, and each of its settings as an option."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ActionConfigFile, ArgumentParser, Namespace  # type: ignore[attr-defined]

from ctm.foreign.text import check_yaml, plain, read_text
from ctm.terminal.list_entries import SetEntry, as_settings
from ctm.terminal.names import check_entries, restrict_names
from ctm.terminal.parser import Parser
from ctm.terminal.recipe_files import recipe_path
from ctm.terminal.train_help import EXAMPLE, TrainHelp
from ctm.training import Recipe
from ctm.training.recipe import NetworkDescription, check_finite

__all__ = ["parse_recipe", "recipe_of", "settings_text", "train_parser"]

_OWN = ("config", "out", "dry_run")
_COMMANDS = (*_OWN, "list_entry", "help", "print_config")  # what a file cannot set


class _RecipeFile(ActionConfigFile):
    """--config: a path, or the name of a recipe that ships with the package."""

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> Any:
        recipe = str(values)
        written_out = ("\n" in recipe or ": " in recipe) and not os.path.isfile(recipe)
        try:
            recipe = recipe if written_out else str(recipe_path(recipe))
            _check(recipe if written_out else read_text(Path(recipe)), plain(recipe), parser)
        except ValueError as error:
            parser.error(str(error))
        super().__call__(parser, cfg, recipe, option_string)


def _check(text: str, name: str, parser: Any) -> None:
    """Raises ValueError for a recipe that has more than plain settings of bounded size, before the library reads it. The
    library would take a `config:`, or a text in place of a group of settings, as the name of a file to include, and it would
    read a text in place of a setting as YAML."""
    check_yaml(text, name)
    settings = yaml.safe_load(text)
    if not isinstance(settings, dict):
        return
    dotted = [action.dest.split(".") for action in parser._actions]
    groups = {names[0] for names in dotted if len(names) > 1 and names[-1] != "help"}
    for key, value in settings.items():
        option = str(key).partition(".")[0].replace("-", "_")
        if option in _COMMANDS or option.startswith("_"):
            raise ValueError(f"{name} sets {plain(str(key))}, which is no setting of a recipe: take it out of the file")
        if key in groups and not isinstance(value, dict):
            raise ValueError(f"{name}: {key} must be given by its settings, got {plain(str(value))!r}")
    _check_texts(settings, name)


def _check_texts(value: object, name: str) -> None:
    if isinstance(value, dict):
        for inner in value.values():
            _check_texts(inner, name)
    elif isinstance(value, list):
        for inner in value:
            _check_texts(inner, name)
    elif isinstance(value, str) and "&" in value and "*" in value:  # only aliases make it long
        check_yaml(value, f"{name}, in the text {plain(value, 40)!r},")
        _check_texts(yaml.safe_load(value), name)


class _TrainParser(Parser):
    """The parser of `ctm train`. It also takes a setting of one entry of a list, such as --objectives.0.grid_points 10."""

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
    """The recipe as YAML, without other options: the text of config.yaml."""
    kept = settings.clone()
    for name in (*_OWN, "__default_config__"):
        kept.pop(name, None)
    return arguments.dump(kept, skip_unset=False, skip_validation=True)


def parse_recipe(arguments: list[str]) -> tuple[Recipe, str]:
    """(recipe, its text) from the arguments of `ctm train`."""
    own = train_parser()
    settings = own.parse_args(arguments)
    return recipe_of(own, settings), settings_text(own, settings)


def recipe_of(own: Parser, settings: Namespace) -> Recipe:
    """The recipe that parsed settings describe. Raises ValueError for an entry that may not stand in its place, and for a
    value of a wrong kind, which the parser accepts if it is null."""
    check_entries(settings)
    check_finite({name: value for name, value in settings.as_dict().items() if name not in _OWN})
    try:
        built = own.instantiate(settings)
        values: dict[str, Any] = {
            key: value for key, value in vars(built).items() if key not in _OWN and not key.startswith("_")
        }
        values["network"] = NetworkDescription(**settings.network.as_dict())
        return Recipe(**values)
    except TypeError as error:
        raise ValueError(f"a setting of the recipe has a value of a wrong kind, such as null: {error}") from error
