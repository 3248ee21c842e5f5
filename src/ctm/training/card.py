"""What a run tells the card of its model, while it trains and from the files that it leaves."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ctm.foreign.text import read_yaml
from ctm.models import AnyModel
from ctm.models.card import card
from ctm.training.assembly import Run
from ctm.training.origin import read_origin
from ctm.training.rows import read_rows
from ctm.training.run_directory import RunDirectory
from ctm.version import __version__

__all__ = ["published_card", "run_card"]


def run_card(
    directory: RunDirectory, run: Run, data: Mapping[str, object], step: int, seconds: float, model: AnyModel
) -> str:
    """The card of a run's model after `step` steps and so many seconds. directory: the RunDirectory. data: what made_of.json
    says of the data."""
    recipe, images = run.recipe, run.images
    facts = _of_the_data({"images": len(images), **data}) | _of_the_recipe(
        teacher=recipe.teacher,
        student=recipe.student,
        objectives=[type(objective).__name__ for objective in recipe.objectives],
        training=f"{step:,} of {recipe.steps:,} steps of {recipe.data.batch_size} images in {seconds:,.0f} s",
        seed=recipe.seed,
    )
    facts |= {"recipe": f"config.yaml of the run {directory.path.name}", "made with": f"ctm-torch {__version__}"}
    numbers = _evaluated(directory.path, step)
    return card(model, facts, classes=images.class_names, numbers=numbers, license=recipe.license)


def published_card(folder: Path, model: AnyModel, *, license: str | None = None) -> str:
    """The card of a model that is kept with the files of its run: recipe.yaml, metrics.jsonl, provenance.json (commit, steps,
    seconds, machine), and made_of.json and evaluations.jsonl where it has them. Without evaluations its numbers are the last
    losses. license: None for the recipe's, which may name none."""
    recipe = read_yaml(folder / "recipe.yaml")
    made = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))
    origin = read_origin(folder)
    data = {"name": recipe["data"]["name"]} if origin is None else origin.sources["data"]
    whole, size = recipe["steps"], recipe["data"]["batch_size"]
    facts = _of_the_data(data) | _of_the_recipe(
        teacher=recipe.get("teacher"),
        student=recipe.get("student"),
        objectives=[objective["class_path"].rpartition(".")[2] for objective in recipe["objectives"]],
        training=f"{made['steps']:,} of {whole:,} steps of {size} images in {made['seconds']:,.0f} s ({made['machine']})",
        seed=recipe["seed"],
    )
    facts |= {"recipe": "recipe.yaml", "made with": f"ctm-torch, commit {made['commit'][:12]}"}
    numbers = _evaluated(folder, made["steps"]) or _losses(read_rows(folder / "metrics.jsonl"))
    return card(model, facts, classes=model.class_names, numbers=numbers, license=license or recipe.get("license"))


def _of_the_data(data: Mapping[str, Any]) -> dict[str, str]:
    """Rows on the data; data: name, source, images, digest and what that is of, as far as they are known."""
    source = str(data.get("source") or data.get("name") or "given in memory")
    facts = {"data": f"{source}; {data['images']} images" if "images" in data else source}
    return facts | ({"data digest": f"{data['digest'][:16]} ({data['of']})"} if "digest" in data else {})


def _of_the_recipe(
    *, teacher: str | None, student: str | None, objectives: Sequence[str], training: str, seed: int
) -> dict[str, str]:
    facts = {"teacher": str(teacher) if teacher is not None else "none"}
    facts |= {"started from": str(student)} if student is not None else {}
    return facts | {"objectives": ", ".join(objectives), "training": training, "seed": str(seed)}


def _evaluated(folder: Path, step: int) -> dict[str, float]:
    """The numbers of the newest evaluation up to a step, none where there is none."""
    evaluations = [row for row in read_rows(folder / "evaluations.jsonl") if row["step"] <= step]
    if not evaluations:
        return {}
    newest = evaluations[-1]
    numbers = {name: value for name, value in newest.items() if isinstance(value, int | float) and name != "step"}
    return {f"{name} (step {newest['step']:g}, against the training data)": value for name, value in numbers.items()}


def _losses(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The losses of the last row of a log."""
    last = rows[-1]
    return {f"{name} (at step {last['step']:,})": value for name, value in last.items() if name.startswith("loss/")}
