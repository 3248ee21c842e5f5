"""Train a diffusion teacher or a CTM by a recipe."""

from __future__ import annotations

import gc
import traceback
from difflib import get_close_matches
from pathlib import Path

import torch
import yaml
from accelerate import PartialState
from jsonargparse import Namespace

from ctm.console import text_console
from ctm.files import suffix_of
from ctm.terminal.recipe_files import OPEN_DATA
from ctm.terminal.recipe_parser import recipe_of, settings_text
from ctm.terminal.recipe_parser import train_parser as parser
from ctm.training import dry_run, train

__all__ = ["parser", "run"]

_DATA_FILES = (".npz", ".npy", ".parquet", ".safetensors", ".zip")


def run(settings: Namespace) -> None:
    """Train, then print where the model and the newest sample grid are. With --dry-run, measure a step and print its cost."""
    try:
        _run(settings)
    except (KeyboardInterrupt, SystemExit) as stop:  # all processes stop at the same step
        traceback.clear_frames(stop.__traceback__)
        _leave_group()
        raise
    _leave_group()


def _leave_group() -> None:
    """End the group of processes. If its threads outlive the interpreter, they sometimes abort it.

    The data-parallel wrapper must be deleted before. If it were the last to hold the group, the group's end would hold
    Python's lock and wait for threads that wait for this lock."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        gc.collect()
        torch.distributed.destroy_process_group()


def _check_given_data(settings: Namespace) -> None:
    """Raises FileNotFoundError for data given as an option that look like a path and are not there: the path is mistyped. A dry
    run takes random pictures only in place of what a recipe itself names, and of a set at the hub."""
    name = settings.data.name
    path = Path(name)
    if name in map(_data_of, settings.get("config") or []) or path.exists():
        return
    folder = path.parent
    beside = [each.name for each in folder.iterdir()] if folder.is_dir() else []
    near = get_close_matches(path.name, beside, 1, cutoff=0.75)
    of_path = name.startswith((".", "/", "~")) or name.count("/") > 1 or suffix_of(path) in _DATA_FILES
    if of_path or near or (folder != Path() and folder.is_dir()):
        hint = f": did you mean {folder / near[0]}?" if near else ""
        raise FileNotFoundError(
            f"there is no file or folder {name}{hint or '.'} A dry run takes random pictures only in place of the data that a "
            "recipe names, or of a set at the hub"
        )


def _data_of(config: object) -> str | None:
    """data.name of a recipe file."""
    file = Path(str(config))
    data = (yaml.safe_load(file.read_text(encoding="utf-8")) or {}).get("data") if file.is_file() else None
    return data.get("name") if isinstance(data, dict) else None


def _run(settings: Namespace) -> None:
    own = parser()
    recipe = recipe_of(own, settings)
    console = text_console()
    if settings.dry_run:
        _check_given_data(settings)
        lines = dry_run(recipe).lines()
        if PartialState().is_main_process:
            console.print("\n".join(lines))
        return
    if recipe.data.name.startswith(OPEN_DATA) and not Path(recipe.data.name).exists():
        raise ValueError("this recipe trains on pictures of your own: give --data.name FOLDER, a folder of them")
    configs = settings.get("config") or []
    name = Path(str(configs[-1])).stem if configs else "run"
    out = Path(settings.out or f"runs/{name}")
    directory = train(recipe, out, settings_text(own, settings), title=out.name)
    if not PartialState().is_main_process:
        return
    pictures = sorted(directory.samples.glob("*.png"))
    shown = f", newest samples: {pictures[-1]}" if pictures else ""
    console.print(f"trained {recipe.steps} steps; model: {directory.model}{shown}")
