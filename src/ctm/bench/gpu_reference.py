"""The part of `ctm bench gpu` that trains beside the plain reference: steps a second and memory of both, on the same networks."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from accelerate import Accelerator

from ctm.bench.gpu_parts import TRAINED, Bench, Row, row
from ctm.bench.learners import place_of, plain_of
from ctm.conditions import LABELS
from ctm.objectives import Matching, Objective
from ctm.training.assembly import Run, prepare
from ctm.training.recipe import Recipe
from ctm.training.stand_in import random_images
from ctm.training.trainer import _step

__all__ = ["reference"]


def reference(bench: Bench) -> dict[str, Any]:
    """A training step of the paper's networks against one of benchmarks/reference/plain_ctm.py: same weights, batch, pictures,
    precision and number of solver steps, which is the mean of those that are drawn, (2·most + 1)/3. The steps are taken in turns.
    Raises ValueError outside a clone of the repository."""
    rows: list[Row] = []
    for name, batch in TRAINED.items():
        recipe = bench.recipe(name, batch=4 if bench.small else batch)
        most = place_of(recipe).grid["max_solver_steps"] or place_of(recipe).grid["grid_points"] - 1
        k = round((2 * most + 1) / 3)
        ours = _ours(bench, replace(recipe, objectives=_with_steps(recipe, k)))
        plain = _plain(bench, recipe, k)
        pairs = [(bench.seconds(ours, 1), bench.seconds(plain, 1)) for _ in range(1 if bench.small else 5)]
        ratio = sorted(one / other for other, one in pairs)[len(pairs) // 2]
        said = f"{name}, batch {recipe.data.batch_size}, {recipe.engine.precision}, {k} solver steps"
        rows += [
            row(f"{said}: steps", 1 / min(one for one, _ in pairs), "a second"),
            row(f"{said}: steps of the plain reference", 1 / min(other for _, other in pairs), "a second"),
            row(f"{said}: ours / reference's (aim 1.5)", ratio, "×"),
        ]
    return {"rows": rows}


def _with_steps(recipe: Recipe, k: int) -> list[Objective]:
    matching = recipe.objectives[0]
    assert isinstance(matching, Matching)
    return [replace(matching, solver_steps=k), *recipe.objectives[1:]]


def _prepared(bench: Bench, recipe: Recipe) -> Run:
    images, _ = random_images(recipe, "")
    run = prepare(recipe, Accelerator(cpu=bench.device.type == "cpu"), images, stand_in=[])
    for group in run.optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    return run


def _ours(bench: Bench, recipe: Recipe) -> Callable[[], object]:
    run, step = _prepared(bench, recipe), itertools.count(recipe.steps // 2)
    return lambda: _step(run, next(step))


def _plain(bench: Bench, recipe: Recipe, k: int) -> Callable[[], object]:
    recipe = replace(recipe, engine=replace(recipe.engine, channels_last=False, precision="fp32", compile=None))
    run = _prepared(bench, recipe)
    plain, _ = plain_of(run)
    generator = torch.Generator(bench.device).manual_seed(0)
    size, half = recipe.data.batch_size, bench.device.type != "cpu"
    x0 = torch.rand(size, *run.student.shape, device=bench.device) * 2 - 1
    fields = run.student.conditioner
    labels = torch.zeros(size, dtype=torch.int64, device=bench.device) if LABELS in fields.fields else None

    def step() -> None:
        with torch.autocast(bench.device.type, torch.bfloat16, enabled=half):
            plain.step(x0, labels, generator, k)

    return step
