"""Parameters that take part in no step, or not in every step: what data-parallel training must know of them beforehand."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from accelerate.utils import DistributedDataParallelKwargs

from ctm.arguments import inside
from ctm.conditions import AUGMENT, to, with_field
from ctm.data.geometry import Geometry
from ctm.objectives import Networks
from ctm.objectives.player import student_learns
from ctm.training.step import draw_batch, step_generator

if TYPE_CHECKING:
    from ctm.training.assembly import Run

__all__ = ["fit_to_processes", "takes_all", "unused_parameters", "without_gradient"]

_SHOWN = 3


def fit_to_processes(run: Run) -> list[str]:
    """Get a run's student ready for the wrapper that averages gradients over processes, which waits for a gradient of every
    parameter in every step. Parameters that no objective reaches are frozen: without a gradient they would not have moved
    either. Where objectives start later and reach more, the wrapper is told to look in each step. Returns lines that say so."""
    steps = sorted({0, *(getattr(objective, "start", 0) for objective in run.recipe.objectives)})
    unused = [unused_parameters(run, step) for step in steps]
    never = set.intersection(*unused)
    for name, parameter in run.student.named_parameters():
        if name in never:
            parameter.requires_grad_(False)
    if any(names - never for names in unused):
        run.accelerator.ddp_handler = DistributedDataParallelKwargs(find_unused_parameters=True)
    return _told(never)


def takes_all(run: Run, step: int) -> bool:
    """Whether the student learns in this step, and by all objectives."""
    objectives = run.recipe.objectives
    return student_learns(objectives, step) and step >= max(getattr(each, "start", 0) for each in objectives)


def without_gradient(run: Run) -> list[str]:
    """Lines that name the student's tensors which the step before left without a gradient. After a step that `takes_all`, none of
    them is ever moved. What several processes must know beforehand is said by `fit_to_processes`."""
    return _told({name for name, p in run.student.named_parameters() if p.requires_grad and p.grad is None})


def _told(never: set[str]) -> list[str]:
    if not never:
        return []
    shown = ", ".join(sorted(never)[:_SHOWN]) + (", …" if len(never) > _SHOWN else "")
    return [f"{len(never)} of the student's tensors take part in no objective and stay as they start: {shown}"]


def unused_parameters(run: Run, step: int) -> set[str]:
    """The names of the student's parameters to which no objective of step `step` has a gradient: by one image, forward and
    backward. Weights, gradients, buffers and torch's random numbers are as before afterwards."""
    device, recipe = run.accelerator.device, run.recipe
    x0, condition = run.images.rows(torch.zeros(1, dtype=torch.int64).numpy())
    if recipe.data.augment:  # its labels reach weights of their own
        condition = with_field(condition, AUGMENT, Geometry.nothing(1).labels())
    generator = step_generator(recipe.seed, step)
    batch = draw_batch(
        recipe.objectives_at(step),
        run.student,
        x0.to(device),
        to(condition, device),
        total=1,
        part=slice(0, 1),
        condition_dropout=0.0,
        generator=generator,
        step=step,
    )
    parameters = dict(run.student.named_parameters())
    buffers = [(buffer, buffer.clone()) for buffer in run.student.buffers()]
    networks = Networks(run.student, run.target, run.teacher, run.player_networks)
    with inside(), torch.random.fork_rng(), torch.enable_grad():  # as in a step
        losses = [
            objective(networks, batch.x0, batch.condition, draw).mean()
            for objective, draw in zip(recipe.objectives, batch.draws, strict=True)
            if draw is not None
        ]
        found = torch.autograd.grad(sum(losses[1:], losses[0]), list(parameters.values()), allow_unused=True)
    for buffer, value in buffers:
        buffer.copy_(value)
    return {name for name, gradient in zip(parameters, found, strict=True) if gradient is None}
