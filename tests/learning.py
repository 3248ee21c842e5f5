"""A plain training loop for tests: a model of a Gaussian mixture, learned from draws of the mixture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ctm.objectives import Objective
from ctm.teachers import ConditionalGaussian, GaussianMixture
from ctm.training.ema import frozen_copy, move_average, warmed_decay
from ctm.training.schedules import Schedule
from ctm.training.step import LossModule, backward, draw_batch, step_generator


def learn(
    data: GaussianMixture | ConditionalGaussian,
    student: Any,
    objectives: Sequence[Objective],
    steps: int,
    *,
    teacher: Any = None,
    learning_rate: float = 3e-3,
    target_ema: float = 0.95,
    schedule: Schedule | None = None,
    classes: bool = False,
    dropout: float = 0.1,
) -> Any:
    """`steps` steps of RAdam on 256 fresh samples each, the rate falling over the last 40 %. Returns the average.

    classes: with the components as labels. dropout: share of conditions left out. A ConditionalGaussian brings its own."""
    module, target, average = LossModule(student, objectives), frozen_copy(student), frozen_copy(student)
    optimizer = torch.optim.RAdam(student.parameters())
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = learning_rate * min(1.0, (steps - step) / (0.4 * steps))
        if isinstance(data, ConditionalGaussian):
            x0, condition = data.sample(256, seed=step)
        else:
            x0, condition = labelled(data, 256, seed=step) if classes else (data.sample(256, seed=step), None)
        decay, points = (target_ema, None) if schedule is None else schedule(step, steps)
        current = objectives if points is None else [objective.on_grid(points) for objective in objectives]
        whole = {"total": len(x0), "part": slice(0, len(x0)), "condition_dropout": dropout}
        batch = draw_batch(current, student, x0, condition, generator=step_generator(0, step), step=step, **whole)
        losses = module(batch, target, teacher)
        optimizer.zero_grad()
        backward(module, losses)
        optimizer.step()
        move_average(target, student, decay)
        move_average(average, student, warmed_decay(0.997, step))
    return average


def labelled(data: GaussianMixture, n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """n draws of the mixture (n, …) and their components (n,)."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.multinomial(data.weights, n, replacement=True, generator=generator)
    return data.means[labels] + data.std * torch.randn(n, *data.shape, generator=generator), labels


def one_jump_error(model: Any, truth: GaussianMixture, n: int = 4000) -> float:
    """Root mean square error of the jump from sigma_max to sigma_min, relative to the data's standard deviation."""
    x = truth.sample(n, seed=10**6) + truth.sigma_max * torch.randn(n, *truth.shape)
    top, bottom = torch.full((n,), truth.sigma_max), torch.full((n,), truth.sigma_min)
    with torch.no_grad():
        missed = model.jump(x, top, bottom) - truth.jump(x, top, bottom)
    return missed.square().mean().sqrt().item() / truth.sigma_data
