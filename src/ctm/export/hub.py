"""A model for the hub: the files of its directory or run, and a card that says how it was made, how good it is, and for what."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ctm.evaluation.measure import METRICS
from ctm.evaluation.number import Number
from ctm.evaluation.plans import title_of
from ctm.evaluation.report import read_result
from ctm.foreign.text import JSONObject, plain
from ctm.models import AnyModel
from ctm.models.card import card, use_and_limits
from ctm.models.reading import CONFIG, WEIGHTS

__all__ = ["CARD", "hub_card", "write_hub_folder"]

CARD, _RECIPE = "README.md", "recipe.yaml"
_LONGEST = 20_000  # letters of a recipe in a card
_PICTURES = ("samples.png", "quality.png")


def write_hub_folder(source: Path, model: AnyModel, out: Path, evaluation: Path | None = None) -> list[str]:
    """Write to `out` what the hub is given of a model or run directory: config.json, the weights, the recipe, pictures and the
    card. evaluation: the folder of a `ctm evaluate`, for its numbers and pictures; else the newest samples of the run.

    Returns sentences on what the card cannot say. Raises FileNotFoundError and ValueError for an evaluation that is none."""
    directory = source if (source / CONFIG).is_file() else source / "model"
    out.mkdir(parents=True, exist_ok=True)
    for name in (CONFIG, WEIGHTS):
        shutil.copyfile(directory / name, out / name)
    places = (source / "config.yaml", directory / _RECIPE, source / _RECIPE)
    recipe = next((file for file in places if file.is_file()), None)
    text = None if recipe is None else recipe.read_text(encoding="utf-8", errors="replace")
    if text is not None:
        (out / _RECIPE).write_text(text, encoding="utf-8")
    result = None if evaluation is None else read_result(evaluation)
    pictures = _copied_pictures(source, out, evaluation)
    kept = directory / CARD
    base = kept.read_text(encoding="utf-8", errors="replace") if kept.is_file() else card(model)
    (out / CARD).write_text(hub_card(base, model, result=result, pictures=pictures, recipe=text), encoding="utf-8")
    absent = [f"{what}: {why}" for what, why in _absent(base, result, pictures, text).items()]
    return [f"the card does not say {line}" for line in absent]


def _copied_pictures(source: Path, out: Path, evaluation: Path | None) -> list[str]:
    """Names of the pictures in `out`: the evaluation's, else the newest grid of samples of a run."""
    found = [] if evaluation is None else [evaluation / name for name in _PICTURES]
    if evaluation is None:
        found = sorted((source / "samples").glob("*.png"), key=lambda file: file.stat().st_mtime)[-1:]
    there = [file for file in found if file.is_file()]
    for file in there:
        shutil.copyfile(file, out / file.name)
    return [file.name for file in there]


def _absent(base: str, result: JSONObject | None, pictures: list[str], recipe: str | None) -> dict[str, str]:
    """What a reader of the card will miss, and where it would come from."""
    missing = {
        "the data": "a training run writes them" if "| data |" not in base else "",
        "the teacher": "a training run writes it" if "| teacher |" not in base else "",
        "the recipe": "there is no config.yaml or recipe.yaml beside the model" if recipe is None else "",
        "numbers with their protocol": "give --evaluation, the folder of a ctm evaluate" if result is None else "",
        "how samples look": "give --evaluation, or a run directory with samples" if not pictures else "",
    }
    return {what: why for what, why in missing.items() if why}


def hub_card(base: str, model: AnyModel, *, result: JSONObject | None, pictures: list[str], recipe: str | None) -> str:
    """The card `base` with pictures, numbers and their protocol, the recipe, intended use and limits behind it."""
    parts = [base.rstrip()]
    if pictures:
        parts += ["## Pictures", *(f"![{name.removesuffix('.png')}]({name})" for name in pictures)]
    if result is not None:
        parts += ["## Evaluation", _numbers(result), _protocol(result["protocol"])]
    if recipe is not None:
        more = "" if len(recipe) <= _LONGEST else f"\n# … the whole is {_RECIPE}"
        parts += ["## Recipe", f"```yaml\n{recipe[:_LONGEST].replace('```', chr(39) * 3).rstrip()}{more}\n```"]
    return "\n\n".join([*parts, use_and_limits(model)])


def _numbers(result: JSONObject) -> str:
    """A table with a line for each row of the evaluation, and its metrics with their error bars."""
    rows = result["rows"]
    names = [name for name in METRICS if any(name in row["numbers"] for row in rows)]
    lines = [["", *(METRICS[name].title for name in names)], ["---"] * (len(names) + 1)]
    for row in rows:
        cells = [str(Number(**row["numbers"][name])) if name in row["numbers"] else "" for name in names]
        lines.append([title_of(row), *cells])
    return "\n".join("| " + " | ".join(plain(cell, 80).replace("|", "/") for cell in line) + " |" for line in lines)


def _protocol(protocol: Mapping[str, Any]) -> str:
    """What must be equal before these numbers are compared with others."""
    features, reference = protocol.get("features", {}), protocol.get("reference", {})
    said = {
        "samples of each row": protocol.get("images"),
        "data": f"{reference.get('name')}, {reference.get('images')} images, sha256 {reference.get('checksum')}",
        "feature network": f"{features.get('name')}, weights {features.get('checksum')}, resized: {features.get('resize')}",
        "classes of the samples": protocol.get("labels"),
        "pixels": protocol.get("pixels"),
        "version of the metrics": protocol.get("metrics"),
    }
    return "Protocol (`ctm evaluate`); the number after a name: evaluations of the network.\n\n" + "\n".join(
        f"* {name}: {plain(str(value), 200)}" for name, value in said.items() if value is not None
    )
