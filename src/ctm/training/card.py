"""What a run tells the card of its model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ctm.models.card import card
from ctm.training.rows import read_rows
from ctm.version import __version__

__all__ = ["run_card"]


def run_card(directory: Any, run: Any, data: Mapping[str, Any], step: int, seconds: float, model: Any) -> str:
    """The card of a run's model after `step` steps and so many seconds. directory: the RunDirectory. data: what made_of.json
    says of the data."""
    recipe, images = run.recipe, run.images
    facts = {
        "data": f"{data.get('source') or data.get('name') or 'given in memory'}; {len(images)} images",
        "data digest": f"{data.get('digest', 'unknown')[:16]} ({data.get('of', '')})",
        "teacher": str(recipe.teacher) if recipe.teacher is not None else "none",
    }
    if recipe.student is not None:
        facts["started from"] = str(recipe.student)
    facts |= {
        "objectives": ", ".join(type(objective).__name__ for objective in recipe.objectives),
        "training": f"{step:,} of {recipe.steps:,} steps of {recipe.data.batch_size} images in {seconds:,.0f} s",
        "seed": str(recipe.seed),
        "recipe": f"config.yaml of the run {directory.path.name}",
        "made with": f"ctm-torch {__version__}",
    }
    evaluations = [row for row in read_rows(directory.path / "evaluations.jsonl") if row["step"] <= step]
    numbers = {}
    if evaluations:
        newest = evaluations[-1]
        numbers = {name: value for name, value in newest.items() if isinstance(value, int | float) and name != "step"}
        numbers = {
            f"{name} (step {newest['step']:g}, against the training data)": value for name, value in numbers.items()
        }
    return card(model, facts, classes=images.class_names, numbers=numbers, license=recipe.license)
