"""Stored walks of a run's objectives, made of its teacher and data before the first step."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ctm.arguments import inside
from ctm.data.digest import digest_of
from ctm.objectives import Objective, StoredWalks
from ctm.objectives.stored_walks import WalkSource
from ctm.training.origin import model_digest
from ctm.training.recipe import Recipe

if TYPE_CHECKING:
    from ctm.training.assembly import Run

__all__ = ["in_passing", "open_walks"]


def in_passing(recipe: Recipe) -> tuple[Recipe, list[Any]]:
    """A dry run's recipe: as many stored walks as a batch has images, in temporary folders, which are returned to be kept."""
    folders: list[Any] = []
    objectives: list[Objective] = []
    for objective in recipe.objectives:
        if isinstance(objective, StoredWalks):
            folders.append(tempfile.TemporaryDirectory())
            walks = min(objective.walks, recipe.data.batch_size)
            objective = replace(objective, folder=folders[-1].name, walks=walks)
        objectives.append(objective)
    return (replace(recipe, objectives=objectives), folders) if folders else (recipe, [])


def open_walks(run: Run) -> list[str]:
    """Make and open the stored walks of the run's objectives; a line for each. All processes call it together."""
    stored = [objective for objective in run.recipe.objectives if isinstance(objective, StoredWalks)]
    if not stored:
        return []
    assert run.teacher is not None
    accelerator = run.accelerator
    source = WalkSource(
        run.teacher,
        accelerator.device,
        run.images.rows,
        len(run.images),
        _digest(run),
        accelerator.is_main_process,
        accelerator.wait_for_everyone,
    )
    with inside():
        return [objective.open(source, run.student) for objective in _alone(stored)]


def _alone(stored: Sequence[StoredWalks]) -> Sequence[StoredWalks]:
    """All of them; raises ValueError where two would write the same file."""
    if len({(objective.folder, objective.seed) for objective in stored}) < len(stored):
        raise ValueError("two StoredWalks of a recipe have the same folder and seed: leave one of them out")
    return stored


def _digest(run: Run) -> str:
    """Of the teacher, its guide, and the data."""
    guided = run.recipe.teacher_guidance if run.begun.guide is not None else None
    models = [model for model in (run.begun.teacher or run.teacher, run.begun.guide) if model is not None]
    parts = [digest_of(run.images).value, guided, *(model_digest(model) for model in models)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
