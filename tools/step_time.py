"""Times a step of matching with what it leaves out and without, in pairs: python tools/step_time.py [RECIPE …] [--pairs N]"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from unittest import mock

import torch
import yaml

from ctm.models import DiffusionModel, TrajectoryModel
from ctm.networks.description import build
from ctm.objectives import DenoisingScoreMatching, Matching, MultistepWalk, matching
from ctm.training.ema import frozen_copy
from ctm.training.step import Batch, LossModule, backward, draw_batch, step_generator

RECIPES = Path(__file__).parents[1] / "recipes"
SHAPES = {"digits": (1, 8, 8), "fashion-mnist": (1, 28, 28)}


def without_gradient(compute: Callable[[], torch.Tensor]) -> torch.Tensor:
    """`ctm.objectives.rows.untracked` as it was before it used inference mode."""
    with torch.no_grad():
        return compute()


class Step:
    """Steps of a recipe's networks and objectives on random images, each from its own draw. multistep: with that walk."""

    def __init__(self, recipe: str, multistep: bool) -> None:
        text = yaml.safe_load((RECIPES / f"{recipe}.yaml").read_text(encoding="utf-8"))
        shape = SHAPES[recipe.rpartition("-")[0]]
        network = text["network"]
        given = {"shape": list(shape), "num_classes": 10}
        student, teacher = (
            build({"class_path": network["class_path"], "init_args": {**given, **network["init_args"], **own}})
            for own in ({}, {"s_embedding": False})
        )
        settings = dict(text["objectives"][0]["init_args"])
        way = Matching(**settings, **({"solver": MultistepWalk()} if multistep else {}))
        self.module = LossModule(TrajectoryModel(student, shape=shape, num_classes=10), [way, DenoisingScoreMatching()])
        self.teacher = frozen_copy(DiffusionModel(teacher, shape=shape, num_classes=10))
        self.target = frozen_copy(self.module.student)
        self.size = text["data"]["batch_size"]
        self.x0 = torch.randn(self.size, *shape).clamp(-1, 1)
        self.labels = torch.randint(0, 10, (self.size,))

    def batch(self, step: int) -> Batch:
        rows = {"total": self.size, "part": slice(0, self.size), "condition_dropout": 0.1}
        objectives, student = self.module.objectives, self.module.student
        return draw_batch(objectives, student, self.x0, self.labels, generator=step_generator(0, step), **rows)

    def __call__(self, batch: Batch) -> float:
        """Processor seconds of forward and backward."""
        started = time.process_time()
        backward(self.module, self.module(batch, self.target, self.teacher))
        return time.process_time() - started


@contextmanager
def as_before():
    with mock.patch.object(matching, "untracked", without_gradient):
        yield


def all_rows(batch: Batch) -> Batch:
    """The batch with no row known to stay."""
    first, *others = batch.draws
    return replace(batch, draws=[replace(first, moves={}), *others])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipes", nargs="*", default=["digits-ctm", "fashion-mnist-ctm"])
    parser.add_argument("--pairs", type=int, default=40)
    chosen = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    print("recipe, walk: seconds of all steps together / those of computing all rows (and of no inference mode either)")
    for name in chosen.recipes:
        for multistep in (False, True):
            step = Step(name, multistep)
            step(step.batch(0))
            found: dict[str, list[float]] = {"now": [], "all rows": [], "before": []}
            for number in range(chosen.pairs):
                batch = step.batch(number)
                kinds = list(found)[:: 1 if number % 2 else -1]
                for kind in kinds:
                    if kind == "before":
                        with as_before():
                            found[kind].append(step(all_rows(batch)))
                    else:
                        found[kind].append(step(batch if kind == "now" else all_rows(batch)))
            now, whole, before = (sum(found[kind]) for kind in found)
            medians = [
                statistics.median(a / b for a, b in zip(found["now"], found[k], strict=True))
                for k in ("all rows", "before")
            ]
            print(
                f"{name}, {'multistep' if multistep else 'Heun'}: {now / whole:.3f} ({now / before:.3f}); "
                f"median of pairs {medians[0]:.3f} ({medians[1]:.3f}); {now / chosen.pairs:.3f} s a step",
                flush=True,
            )


if __name__ == "__main__":
    main()
