"""Kinds of training compared on real images: Fréchet distances at 1, 2, 4 and 8 steps, with the same budget for all."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor

from ctm.backbones import EfficientNetLite0
from ctm.bench.results import Results
from ctm.data import Images, load_images
from ctm.evaluation.frechet import frechet, frechet_distance
from ctm.evaluation.moments import Gaussian
from ctm.files import write_whole
from ctm.models import TrajectoryModel, load_model
from ctm.models.protocol import Denoiser
from ctm.noise import karras_grid, to_zero
from ctm.pictures import as_saved
from ctm.sampling import generate, heun
from ctm.terminal.recipe_files import RECIPES
from ctm.terminal.recipe_parser import parse_recipe
from ctm.training import train
from ctm.training.run_directory import RunDirectory

__all__ = ["METHODS", "STEPS", "ImageBench", "Settings", "run_images"]

STEPS = (1, 2, 4, 8)
_GRID_POINTS = 18
_BATCH = 250
_PROBE = (2, 14)  # steps of the two short runs whose difference gives the seconds of one


@dataclass(frozen=True)
class Settings:
    """What is compared.

    data: a set by name; its shipped recipes NAME-ctm.yaml … are used. teacher: its model. runs: directory of the students'
    runs. minutes: processor time of each student's training. count: samples for each distance. side: pixels that the feature
    network sees. seeds: number of trainings of each kind, with seeds 0, 1, …"""

    data: str
    teacher: Path
    runs: Path
    minutes: float = 12.0
    count: int = 5000
    side: int = 64
    seeds: int = 1


def _without_dsm(objectives: list[Any]) -> list[Any]:
    return [entry for entry in objectives if not entry["class_path"].endswith("DenoisingScoreMatching")]


def _matching(**settings: Any) -> Callable[[list[Any]], list[Any]]:
    """The recipe's objectives with other settings of Matching."""

    def changed(objectives: list[Any]) -> list[Any]:
        first = {**objectives[0], "init_args": {**objectives[0]["init_args"], **settings}}
        return [first, *objectives[1:]]

    return changed


METHODS: dict[str, tuple[str, Callable[[list[Any]], list[Any]]]] = {
    "soft": ("ctm", lambda objectives: objectives),
    "local": ("ctm", _matching(kind="local")),
    "global": ("ctm", _matching(kind="global")),
    "without DSM": ("ctm", _without_dsm),
    "CM": ("cm", lambda objectives: objectives),
    "from scratch": ("scratch", lambda objectives: objectives),
    "GAN": ("ctm-gan", lambda objectives: objectives),
}


class ImageBench:
    """The real images through the feature network, and the measuring of models."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.images: Images = load_images(settings.data)
        self.features = EfficientNetLite0(side=settings.side)
        self.teacher = load_model(str(settings.teacher))
        order = np.random.default_rng(0).permutation(len(self.images))[: 2 * settings.count]
        x, labels = self.images.batch(order)
        self.labels = None if labels is None else labels[: settings.count]
        self.real = self._features(x)
        self.gaussian = Gaussian.of(self.real)  # whose root is computed once
        self.reference: Tensor | None = None

    @torch.no_grad()
    def _features(self, x: Tensor) -> Tensor:
        return torch.cat([self.features.pooled(part) for part in as_saved(x).split(_BATCH)])

    def floor(self) -> float:
        """The distance between two disjoint sets of `count` real images each."""
        return frechet_distance(self.real[: self.settings.count], self.real[self.settings.count :])

    def of_teacher(self) -> dict[str, Any]:
        """The numbers of the teacher, sampled by Heun's method with 18 levels and 0: 35 evaluations."""
        return {"evaluations": 35, "frechet": {"35": self._frechet(self._teacher_samples())}}

    def of_student(self, model: Denoiser) -> dict[str, Any]:
        """The numbers of a student at each number of steps, with γ = 0 if it can jump anywhere, and with γ = 1; also the
        squared distance of its samples to the teacher's from the same noise."""
        found: dict[str, Any] = {"frechet": {}, "frechet_gamma_1": {}, "mse_to_teacher": {}}
        jumps = isinstance(model, TrajectoryModel)
        for steps in STEPS:
            if jumps or steps == 1:
                samples = self._draw(model, steps=steps, gamma=0.0)
                found["frechet"][str(steps)] = self._frechet(samples)
                found["mse_to_teacher"][str(steps)] = float((samples - self._teacher_samples()).square().mean())
            if steps > 1:
                found["frechet_gamma_1"][str(steps)] = self._frechet(self._draw(model, steps=steps, gamma=1.0))
        return found

    def _frechet(self, samples: Tensor) -> float:
        return frechet(Gaussian.of(self._features(samples)), self.gaussian)

    def _draw(self, model: Denoiser, **options: Any) -> Tensor:
        return generate(model, self.settings.count, condition=self.labels, seed=0, batch_size=_BATCH, **options)

    def _teacher_samples(self) -> Tensor:
        if self.reference is None:
            grid = karras_grid(_GRID_POINTS - 1, self.teacher.sigma_min, self.teacher.sigma_max)
            self.reference = self._draw(self.teacher, grid=to_zero(grid), sampler=heun)
        return self.reference


def run_images(
    results: Results, settings: Settings, methods: list[str], *, progress: Callable[[Any], Any] = lambda runs: runs
) -> None:
    """Train and measure each method that the results do not hold yet. An interrupted run is continued."""
    bench = ImageBench(settings)
    about = {"part": "images", "data": settings.data, "count": settings.count, "side": settings.side}
    if _name(settings, "teacher") not in results.entries:
        entry = about | {"method": "teacher", "floor": bench.floor()} | bench.of_teacher()
        results.add(_name(settings, "teacher"), entry)
    runs = [(method, seed) for seed in range(settings.seeds) for method in methods]
    left = [run for run in runs if _name(settings, *run) not in results.entries]
    settings.runs.mkdir(parents=True, exist_ok=True)
    plans = {method: _plan(settings, method) for method, _ in left}  # all timed before the first is trained: one load
    for method, seed in progress(left):
        plan = plans[method]
        recipe, text = parse_recipe([*plan.arguments, "--seed", str(seed)])
        out = plan.out if seed == 0 else plan.out.with_name(f"{plan.out.name}-{seed}")
        directory = train(recipe, out, text, images=bench.images, title=out.name)
        entry = about | {"method": method, "minutes": settings.minutes, "seconds_per_step": plan.seconds, "seed": seed}
        entry |= {"steps": recipe.steps, "images": recipe.steps * recipe.data.batch_size}
        entry |= {"teacher_evaluations": _teacher_evaluations(directory, recipe.data.batch_size)}
        results.add(_name(settings, method, seed), entry | bench.of_student(load_model(str(directory.model))))


def _teacher_evaluations(directory: RunDirectory, batch_size: int) -> int:
    """The teacher's evaluations in a whole run, from its metrics."""
    rows, before, total = directory.read_metrics(), 0.0, 0.0
    for row in rows:
        total += batch_size * row["teacher_evaluations_per_image"] * (row["step"] - before)
        before = row["step"]
    return round(total)


@dataclass(frozen=True)
class _Plan:
    """One method's training: the arguments of `ctm train`, the run directory, and processor seconds a step."""

    arguments: list[str]
    out: Path
    seconds: float


def _name(settings: Settings, method: str, seed: int = 0) -> str:
    return f"images/{settings.data}/{method}" + (f"/{seed}" if seed else "")


def _plan(settings: Settings, method: str) -> _Plan:
    """The training with as many steps as fit into the budget. The number is kept beside the run, so that the run continues
    as it began. An objective that starts late starts after the same share of the steps as in its recipe."""
    kind, change = METHODS[method]
    recipe = RECIPES / f"{settings.data}-{kind}.yaml"
    out = settings.runs / method.replace(" ", "-").lower()
    shipped = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    objectives = change(shipped["objectives"])
    alone = _share_without_late(objectives, shipped["steps"])
    base = ["--config", str(recipe)] + ([] if kind == "scratch" else ["--teacher", str(settings.teacher)])
    kept = out.with_name(f"{out.name}.json")
    if not kept.is_file():
        ways = [(1 - alone, _starting(objectives, 0)), (alone, _starting(objectives, 10**9))]
        seconds = sum(
            share * _seconds_per_step([*base, f"--objectives={json.dumps(way)}"], out) for share, way in ways if share
        )
        steps = max(20, int(settings.minutes * 60 / seconds))
        write_whole(kept, json.dumps({"steps": steps, "seconds_per_step": round(seconds, 4)}).encode())
    found = json.loads(kept.read_text(encoding="utf-8"))
    objectives = _starting(objectives, int(alone * found["steps"]))
    arguments = [*base, f"--objectives={json.dumps(objectives)}", "--steps", str(found["steps"])]
    return _Plan(arguments, out, found["seconds_per_step"])


def _late(entry: dict[str, Any]) -> bool:
    """Whether a recipe's objective has a first step of its own."""
    return "start" in entry.get("init_args", {})


def _share_without_late(objectives: list[Any], steps: int) -> float:
    """The share of a recipe's steps before its late objective starts; 0 where it has none."""
    return max((entry["init_args"]["start"] / steps for entry in objectives if _late(entry)), default=0.0)


def _starting(objectives: list[Any], start: int) -> list[Any]:
    """The objectives with the late ones from step `start` on."""
    return [
        {**entry, "init_args": {**entry["init_args"], "start": start}} if _late(entry) else entry
        for entry in objectives
    ]


def _seconds_per_step(arguments: list[str], out: Path) -> float:
    """Processor seconds of one training step: the difference between two short runs, so that what happens once does not
    count."""
    times = []
    for steps in _PROBE:
        with tempfile.TemporaryDirectory(dir=out.parent) as place:
            recipe, text = parse_recipe([*arguments, "--steps", str(steps), "--log_every", str(steps)])
            started = time.process_time()
            train(recipe, Path(place) / "run", text, title="timing a step")
            times.append(time.process_time() - started)
    return max(1e-4, (times[1] - times[0]) / (_PROBE[1] - _PROBE[0]))
