"""What is trained in a cell of `ctm bench teach`: a student by the trainer's own steps, or the plain reference."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from ctm.bench.ways import REFERENCE, WAYS, Place, in_words
from ctm.conditions import LABELS
from ctm.data import Images
from ctm.models import TrajectoryModel
from ctm.objectives import Matching
from ctm.terminal.recipe_files import RECIPES
from ctm.terminal.recipe_parser import parse_recipe
from ctm.training import Recipe
from ctm.training.assembly import Run, prepare
from ctm.training.ema import frozen_copy
from ctm.training.trainer import _step

__all__ = [
    "Learner",
    "RecipeLearner",
    "ReferenceLearner",
    "learner_of",
    "place_of",
    "plain_module",
    "plain_of",
    "recipe_of",
]

_PLAIN = Path("benchmarks/reference/plain_ctm.py")
_ENDLESS = 10**9  # steps of a run that its seconds end


class Learner(Protocol):
    """A training in steps. settings: what is taught, in words. steps: taken so far."""

    settings: str
    steps: int

    def step(self, factor: float) -> int:
        """One step at `factor` times the learning rate. Returns the teacher's evaluations, of one image each."""
        ...

    def published(self) -> TrajectoryModel:
        """The student with its averaged weights."""
        ...

    def parts(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The modules and the optimisers that a checkpoint holds."""
        ...

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds besides, as JSON."""
        ...

    def take_up(self, steps: int, state: Mapping[str, Any]) -> None:
        """Go on after so many steps; the parts were loaded."""
        ...


def recipe_of(data: str, teacher: Path, seed: int) -> Recipe:
    """The shipped recipe NAME-ctm.yaml of a set, for a run that its seconds end."""
    recipe, _ = parse_recipe(["--config", str(RECIPES / f"{data}-ctm.yaml"), "--teacher", str(teacher)])
    return replace(recipe, steps=_ENDLESS, decay_fraction=0.0, seed=seed)


def place_of(recipe: Recipe, steps: int = _ENDLESS) -> Place:
    """The levels of a recipe's `Matching`."""
    matching = recipe.objectives[0]
    if not isinstance(matching, Matching):
        raise ValueError(f"the recipe's first objective must be Matching, got {type(matching).__name__}")
    return Place({"grid_points": matching.grid_points, "max_solver_steps": matching.max_solver_steps}, steps)


def learner_of(way: str, recipe: Recipe, images: Images, steps: int = _ENDLESS) -> Learner:
    """The training of a way, or of the reference. steps: about as many as it will take."""
    if way == REFERENCE:
        return ReferenceLearner(recipe, images)
    objectives = WAYS[way].objectives(place_of(recipe, steps))
    return RecipeLearner(replace(recipe, objectives=objectives), images, WAYS[way].rate)


class RecipeLearner:
    """A recipe's student, by the steps of `ctm train`."""

    def __init__(self, recipe: Recipe, images: Images, rate: float = 1.0) -> None:
        self.run = prepare(recipe, Accelerator(cpu=True, mixed_precision="no"), images)
        self.rates = [rate * group["lr"] for group in self.run.optimizer.param_groups]
        self.settings = f"{in_words(recipe.objectives)}, learning rates {self.rates}"
        self.steps = 0

    def step(self, factor: float) -> int:
        for group, rate in zip(self.run.optimizer.param_groups, self.rates, strict=True):
            group["initial_lr"] = factor * rate
        numbers = _step(self.run, self.steps)
        self.steps += 1
        for guard in self.run.guards.values():
            guard.check(self.steps, list)
        each = float(numbers.get("teacher_evaluations_per_image", 0.0))
        return round(each * self.run.recipe.data.batch_size)

    def published(self) -> TrajectoryModel:
        model = self.run.published
        assert isinstance(model, TrajectoryModel)
        return model

    def parts(self) -> tuple[dict[str, Any], dict[str, Any]]:
        return self.run.parts(gather=False)

    def state(self) -> dict[str, Any]:
        return {name: guard.state_dict() for name, guard in self.run.guards.items()}

    def take_up(self, steps: int, state: Mapping[str, Any]) -> None:
        self.steps = steps
        for name, guard in self.run.guards.items():
            guard.load_state_dict(state[name])


class ReferenceLearner:
    """The algorithm of benchmarks/reference/plain_ctm.py on the recipe's network, with the recipe's settings."""

    def __init__(self, recipe: Recipe, images: Images) -> None:
        recipe = replace(recipe, engine=replace(recipe.engine, channels_last=False))
        run = prepare(recipe, Accelerator(cpu=True, mixed_precision="no"), images)
        assert isinstance(run.student, TrajectoryModel)
        assert run.teacher is not None
        self.images, self.recipe, self.model = images, recipe, frozen_copy(run.student)
        self.rate = run.optimizer.param_groups[0]["lr"]
        self.plain, settings = plain_of(run)
        self.settings = f"plain reference, {settings}"
        self.steps = 0

    def step(self, factor: float) -> int:
        generator = torch.Generator().manual_seed((self.recipe.seed << 32) + self.steps)
        size = self.recipe.data.batch_size
        rows = torch.randint(len(self.images), (size,), generator=generator).numpy()
        x0, labels = self.images.batch(np.asarray(rows))
        if labels is not None:
            share = self.recipe.condition_dropout
            share = share.get(LABELS, 0.0) if isinstance(share, dict) else share
            left_out = torch.rand(size, generator=generator) < share
            labels = torch.where(left_out, -1, labels)
        for group in self.plain.optimizer.param_groups:
            group["lr"] = factor * self.rate
        evaluations = self.plain.step(x0, labels, generator)
        self.steps += 1
        return int(evaluations) * size

    def published(self) -> TrajectoryModel:
        self.model.network.load_state_dict(self.plain.average.state_dict())
        return self.model

    def parts(self) -> tuple[dict[str, Any], dict[str, Any]]:
        networks: dict[str, nn.Module] = {name: getattr(self.plain, name) for name in ("student", "target", "average")}
        return networks, {"student": self.plain.optimizer}

    def state(self) -> dict[str, Any]:
        return {}

    def take_up(self, steps: int, state: Mapping[str, Any]) -> None:
        self.steps = self.plain.steps = steps


def plain_of(run: Run) -> tuple[Any, dict[str, Any]]:
    """The plain reference on a run's student and teacher with its recipe's settings, and what these are. Raises ValueError where
    the recipe has no constant ema or its first objective is not `Matching`."""
    assert run.teacher is not None
    model, place, ema = run.student, place_of(run.recipe).grid, run.recipe.ema
    assert isinstance(model, TrajectoryModel)
    if not isinstance(ema, float):
        raise ValueError(f"the plain reference keeps one average, got ema {ema}")
    settings: dict[str, Any] = {
        "sigma_data": model.sigma_data,
        "sigma_min": model.sigma_min,
        "sigma_max": model.sigma_max,
        "grid_points": place["grid_points"],
        "most_steps": place["max_solver_steps"] or place["grid_points"] - 1,
        "lr": run.optimizer.param_groups[0]["lr"],
        "target_ema": run.recipe.target_ema,
        "ema": ema,
    }
    return plain_module().Plain(model.network, run.teacher.network, **settings), settings


def plain_module() -> Any:
    """The module of the plain reference, from a clone of the repository. Raises ValueError where it is not there."""
    places = [Path(), *Path(__file__).parents]
    found = next((place / _PLAIN for place in places if (place / _PLAIN).is_file()), None)
    if found is None:
        raise ValueError(f"the reference is {_PLAIN} of the repository, which is not installed: run this in a clone")
    spec = importlib.util.spec_from_file_location("plain_ctm", found)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
