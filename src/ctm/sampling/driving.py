"""Samplers as generators of requests (`ctm.requests`): one driven by itself, or many in the same calls of the network."""

from __future__ import annotations

import functools
import inspect
import itertools
from collections.abc import Callable, Hashable, Iterable, Sequence
from contextlib import nullcontext
from typing import Concatenate, ParamSpec, Protocol

import torch
from torch import Tensor

from ctm.arguments import as_count, inside, words_for
from ctm.conditions import takes_labels
from ctm.models.protocol import Model, can_jump, denoiser_of, jumper
from ctm.requests import Denoise, Request, Steps, joined, kind_of, part, run

__all__ = ["Sampler", "answer", "drive", "drive_together", "jump_sampler", "sampler"]

P = ParamSpec("P")


class Sampler(Protocol[P]):
    """A sampler f(model, x, grid, …) -> x; `steps` is its generator, called without the model."""

    steps: Callable[Concatenate[Tensor, Tensor, P], Steps]

    def __call__(self, model: Model, x: Tensor, grid: Tensor, /, *args: P.args, **options: P.kwargs) -> Tensor: ...


def sampler(steps: Callable[Concatenate[Tensor, Tensor, P], Steps]) -> Sampler[P]:
    """The sampler that drives a generator steps(x, grid, …) of requests to its end."""

    @takes_labels
    @functools.wraps(steps)
    def sample(model: Model, x: Tensor, grid: Tensor, *args: P.args, **options: P.kwargs) -> Tensor:
        callback = options.get("callback")
        if callback is not None and not callable(callback):
            raise ValueError(f"callback is a function of a Step, got {words_for(callback)}")
        return drive(model, steps(x, grid, *args, **options))

    own = inspect.signature(steps, eval_str=False)
    first = inspect.Parameter("model", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation="Model")
    sample.__signature__ = own.replace(  # type: ignore[attr-defined]
        parameters=[first, *own.parameters.values()], return_annotation="Tensor"
    )
    sample.steps = takes_labels(steps)  # type: ignore[attr-defined]
    return sample  # type: ignore[return-value]


def jump_sampler(steps: Callable[Concatenate[Tensor, Tensor, P], Steps]) -> Sampler[P]:
    """`sampler` for one that jumps: the end of the grid is looked at first, as only the first jump's levels are checked."""
    made = sampler(steps)

    @takes_labels
    @functools.wraps(made)
    def sample(model: Model, x: Tensor, grid: Tensor, *args: P.args, **options: P.kwargs) -> Tensor:
        check = getattr(model, "check_levels", None)
        if check is not None and isinstance(grid, Tensor) and grid.dim() == 1 and bool(grid.isfinite().all()):
            check(grid.max()[None], grid.min()[None])
        return made(model, x, grid, *args, **options)

    return sample  # type: ignore[return-value]


def answer(model: Model, request: Request) -> Tensor:
    """What the model says to one request. Raises ValueError where it cannot: a jump asked of a model that only denoises."""
    if isinstance(request, Denoise):
        return denoiser_of(model, request.condition)(request.x, request.t)
    if not can_jump(model):
        raise ValueError(
            f"{type(model).__name__} has no jump(x, t, s, condition): use a sampler of denoisers, e.g. heun"
        )
    return jumper(model).jump(request.x, request.t, request.s, request.condition)


@torch.no_grad()
def drive(model: Model, steps: Steps) -> Tensor:
    """What a generator of requests returns when the model answers them one after another.

    The first request is checked as a stranger's call; the others are made of the same rows and read nothing back from the
    device. Raises what the model and the generator raise."""
    answered = itertools.count()

    def reply(request: Request) -> Tensor:
        with inside() if next(answered) else nullcontext():
            return answer(model, request)

    return run(steps, reply)


@torch.no_grad()
def drive_together(model: Model, plans: Sequence[Steps], *, batch_size: int = 64) -> list[Tensor]:
    """What each of many generators of requests returns, in their order. In each round all that wait are answered: requests of
    one kind, dtype and shape share calls of the model of up to batch_size rows.

    Generators may be of different samplers, lengths and numbers of rows. Where one has no condition, or lacks
    a field that another one has, it is absent. A result equals the result of `drive` alone up to the rounding of the network
    on another batch. An error of one generator or call is raised at once.

    plans: fresh generators, `sampler.steps(x, grid, …)`, each once. Raises ValueError for anything else, before any has begun."""
    batch_size, plans = as_count(batch_size, "batch_size"), _fresh(plans)
    results: list[Tensor | None] = [None] * len(plans)
    waiting: dict[int, Request] = {}

    def move(index: int, given: Tensor | None) -> None:
        try:
            waiting[index] = plans[index].send(given) if given is not None else next(plans[index])
        except StopIteration as done:
            results[index] = done.value

    for index in range(len(plans)):
        move(index, None)
    while waiting:
        asked, waiting = waiting, {}
        for group in _alike(asked):
            for index, given in zip(group, _answers(model, [asked[i] for i in group], batch_size), strict=True):
                move(index, given)
    return [result for result in results if result is not None]


def _fresh(plans: Sequence[Steps]) -> list[Steps]:
    """The plans as a list. Raises ValueError unless each is a generator that has not begun, and none stands there twice."""
    if inspect.isgenerator(plans) or not isinstance(plans, Iterable):
        raise ValueError(f"plans is a list of generators, such as [heun.steps(x, grid)], got {words_for(plans)}")
    listed = list(plans)
    first: dict[int, int] = {}
    for index, plan in enumerate(listed):
        if not inspect.isgenerator(plan):
            raise ValueError(
                f"plan {index} is no generator of requests, such as heun.steps(x, grid), but {words_for(plan)}"
            )
        if id(plan) in first:
            raise ValueError(f"plans {first[id(plan)]} and {index} are the same generator: make one for each")
        first[id(plan)] = index
        state = inspect.getgeneratorstate(plan)
        if state != inspect.GEN_CREATED:
            done = "has ended" if state == inspect.GEN_CLOSED else "has begun"
            raise ValueError(f"plan {index} {done} already, and a generator runs once: make a new one")
    return listed


def _alike(asked: dict[int, Request]) -> list[list[int]]:
    """The numbers of the requests that can share a call, group by group."""
    groups: dict[Hashable, list[int]] = {}
    for index, request in asked.items():
        groups.setdefault(kind_of(request), []).append(index)
    return list(groups.values())


def _answers(model: Model, requests: list[Request], batch_size: int) -> Sequence[Tensor]:
    """The model's answers to requests of one kind, from calls on at most batch_size of their rows together."""
    counts = [len(request.x) for request in requests]
    together = joined(requests)
    starts = range(0, sum(counts), batch_size)
    return torch.cat([answer(model, part(together, start, start + batch_size)) for start in starts]).split(counts)
