"""What the demo measures: Fréchet distance, label agreement, agreement with the teacher, time."""

from __future__ import annotations

import itertools
import time
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ctm.data import Images
from ctm.evaluation.classifier import Classifier
from ctm.evaluation.frechet import frechet_distance
from ctm.noise import karras_grid, to_zero
from ctm.pictures import as_saved
from ctm.sampling import generate, heun, starting_noise

__all__ = ["GAMMAS", "STEPS", "Judge", "Row", "as_json", "jump_path", "labelled", "measure"]

STEPS = (1, 2, 4, 8)
GAMMAS = (0.0, 0.5, 1.0)
TEACHER_LEVELS = 18
_SEEDS = (0, 1, 2)
_BATCH = 256


@dataclass(frozen=True)
class Row:
    """One line of the table. frechet: the mean over seeds, each with as many samples as real images, and frechet_spread
    its largest deviation; frechet_pooled: of the samples of all seeds together, less biased; the rest are means."""

    model: str
    steps: int
    gamma: float
    evaluations: int
    frechet: float
    frechet_spread: float
    frechet_pooled: float
    label_agreement: float
    mse_to_teacher: float
    ms_per_image: float


def labelled(images: Images) -> tuple[Tensor, Tensor]:
    """All images in [-1, 1] and their labels. Raises ValueError for a set without labels."""
    x, labels = images.all()
    if labels is None:
        raise ValueError(f"{images.name} has no labels, by which samples are judged here")
    return x, labels


class Judge:
    """The real images under a classifier trained on them, and what it says of samples (N, C, H, W)."""

    def __init__(self, images: Images, classifier: Classifier) -> None:
        self.classifier = classifier
        self.real, self.labels = labelled(images)
        self.features = self._features(self.real)

    @torch.no_grad()
    def _features(self, x: Tensor) -> Tensor:
        return self.classifier.features(x)

    def frechet(self, samples: Tensor) -> float:
        return frechet_distance(self.features, self._features(as_saved(samples)))

    @torch.no_grad()
    def agreement(self, samples: Tensor) -> float:
        """Share of samples that the classifier puts in the class they were made for (the real images' labels, in order)."""
        return float((self.classifier(as_saved(samples)).argmax(1) == self.labels).float().mean())

    def floor(self, seed: int = 0) -> float:
        """The distance between two random halves of the real images."""
        order = torch.randperm(len(self.features), generator=torch.Generator().manual_seed(seed))
        half = len(order) // 2
        return frechet_distance(self.features[order[:half]], self.features[order[half : 2 * half]])

    def accuracy(self) -> float:
        """Of the classifier on the images it was trained on."""
        return self.agreement(self.real)


def measure(teacher: Any, student: Any, judge: Judge, progress: Any = lambda rows: rows) -> list[Row]:
    """The teacher (Heun, 35 evaluations) and the student at every number of steps and γ, as many samples as real images,
    with the real images' labels, under three seeds; sample i of all rows starts from the same noise."""
    labels, count = judge.labels, len(judge.labels)
    teacher_grid = to_zero(karras_grid(TEACHER_LEVELS - 1, teacher.sigma_min, teacher.sigma_max))
    draw_teacher = partial(generate, teacher, grid=teacher_grid, sampler=heun)
    plans = [("teacher", TEACHER_LEVELS, 0.0, 2 * TEACHER_LEVELS - 1, draw_teacher)]
    for gamma in GAMMAS:
        for steps in STEPS:
            if steps > 1 or gamma == 0:  # one jump adds no noise: the same for every γ
                plans.append(("CTM", steps, gamma, steps, partial(generate, student, steps=steps, gamma=gamma)))
    rows: list[Row] = []
    references: dict[int, Tensor] = {}
    for name, steps, gamma, evaluations, draw in progress(plans):
        found, drawn = [], []
        for seed in _SEEDS:
            started = time.perf_counter()
            samples = draw(count, condition=labels, seed=seed, batch_size=_BATCH)
            seconds = time.perf_counter() - started
            references.setdefault(seed, samples)
            drawn.append(samples)
            difference = float((samples - references[seed]).square().mean())
            found.append((judge.frechet(samples), judge.agreement(samples), difference, 1000 * seconds / count))
        means = [sum(values) / len(values) for values in zip(*found, strict=True)]
        spread = max(abs(values[0] - means[0]) for values in found)
        pooled = judge.frechet(torch.cat(drawn))
        rows.append(Row(name, steps, gamma, evaluations, means[0], spread, pooled, *means[1:]))
    return rows


@torch.no_grad()
def jump_path(student: Any, label: int, steps: int, seed: int = 0) -> tuple[list[float], Tensor, Tensor]:
    """One sample's way from noise in `steps` jumps: the levels, the states divided by √(1 + t²), and from each state what
    one jump to the end gives. (steps + 1 levels; states and ends (steps + 1, C, H, W).)"""
    grid = karras_grid(steps, student.sigma_min, student.sigma_max)
    labels = torch.tensor([label])
    x = grid[0] * starting_noise(student.shape, [0], seed)
    states, ends = [x], []
    for t, s in itertools.pairwise(grid):
        ends.append(student.jump(x, t[None], grid[-1:], labels))
        x = student.jump(x, t[None], s[None], labels)
        states.append(x)
    ends.append(x)
    scaled = [state / (1 + t**2).sqrt() for state, t in zip(states, grid, strict=True)]
    return grid.tolist(), torch.cat(scaled), torch.cat(ends)


def as_json(rows: list[Row]) -> list[dict[str, Any]]:
    """Rows as plain values."""
    return [asdict(row) for row in rows]
