"""Recipe files by path, or by the name of one that ships with the package."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path

from ctm.files import suffix_of

__all__ = ["OPEN_DATA", "RECIPES", "recipe_path", "shipped_recipe"]

RECIPES = Path(__file__).parents[1] / "recipes"
OPEN_DATA = "path/to/"  # how data.name begins in a recipe that leaves the data to the user
_SUFFIXES = (".yaml", ".yml")


def shipped_recipe(name: str) -> Path | None:
    """The file of a shipped recipe, by its name with or without `recipes/` before it and `.yaml` after it."""
    plain = Path(name.removeprefix("recipes/"))
    stem = plain.stem if suffix_of(plain) in _SUFFIXES else plain.name
    path = RECIPES / f"{stem}.yaml"
    return path if plain.parent == Path() and stem and path.is_file() else None


def recipe_path(name: str) -> Path:
    """The file of a recipe: your own by its path, or a shipped one by its name. Your own file goes first.

    Raises FileNotFoundError that names recipes with a similar name."""
    own = [Path(name)] + [Path(name + suffix) for suffix in _SUFFIXES]
    path = next((path for path in own if path.is_file()), None) or shipped_recipe(name)
    if path is not None:
        return path
    names = sorted(path.stem for path in RECIPES.glob("*.yaml"))
    near = get_close_matches(Path(name).name.removesuffix(".yaml"), names, 3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}? All" if near else "all"
    raise FileNotFoundError(f"there is no recipe {name}: {hint} that come with the package: ctm recipes")
