"""What a user asks for as a plan: the generator of requests by which the network makes it."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ctm import sampling
from ctm.arguments import as_count, as_number
from ctm.conditions import GUIDANCE, Condition, absent, cat, to, with_field
from ctm.models import DiffusionModel
from ctm.models.grids import tuned_for
from ctm.models.guided import droppable, takes_guidance
from ctm.models.protocol import RangedDenoiser, can_jump
from ctm.noise import karras_grid, to_zero
from ctm.requests import Denoise, Jump, Request, Steps
from ctm.sampling.common import device_of
from ctm.sampling.driving import Sampler
from ctm.sampling.image_noise import ImageNoise
from ctm.sampling.jumps import as_gamma
from ctm.sampling.marking import Marks
from ctm.serve.tickets import Joinable

__all__ = ["SAMPLERS", "Method", "Part", "choose", "generation", "guided", "joinable", "later", "watched"]

_JUMPS = ("gamma", "consistency")
_DENOISERS = ("heun", "euler", "dpmpp_2m", "midpoint", "ancestral", "dpmpp_2m_sde")
SAMPLERS = (*_JUMPS, *_DENOISERS)
_TWO_EACH = ("heun", "midpoint")


@dataclass(frozen=True)
class Method:
    """How images are made. levels: the grid; gamma: of γ-sampling, else None; calls: requests of its plan; guidance: the scale of
    classifier-free guidance, None without."""

    sampler: str
    levels: Tensor
    gamma: float | None
    calls: int
    guidance: float | None = None

    @property
    def steps(self) -> int:
        return len(self.levels) - 1

    @functools.cached_property
    def key(self) -> Hashable:
        """Equal for equal methods."""
        return self.sampler, tuple(self.levels.tolist()), self.gamma, self.guidance


def choose(
    model: RangedDenoiser,
    *,
    sampler: str | None = None,
    steps: int | None = None,
    gamma: float | None = None,
    guidance: float | None = None,
    most_steps: int = 128,
) -> Method:
    """The method as `ctm sample` chooses it: γ-sampling with one jump for a CTM, Heun's with 18 levels for a diffusion model; the
    model's tuned grid where it keeps one for so many steps.

    Raises ValueError for an unknown sampler, one that the model cannot follow, and numbers out of range."""
    name = sampler or ("heun" if isinstance(model, DiffusionModel) or not can_jump(model) else "gamma")
    if name not in SAMPLERS:
        raise ValueError(f"sampler must be one of {', '.join(SAMPLERS)}, got {name!r}")
    if name in _JUMPS and not can_jump(model):
        raise ValueError(f"sampler {name} needs a model that jumps, and this one only denoises: use heun")
    if gamma is not None and name != "gamma":
        raise ValueError(f"gamma belongs to γ-sampling, and the sampler here is {name}: leave it out")
    steps = as_count(steps if steps is not None else (1 if name in _JUMPS else 18), "steps", 1 if name in _JUMPS else 2)
    if steps > most_steps:
        raise ValueError(f"steps must be at most {most_steps} here, got {steps}")
    scale = None if guidance is None else _scale(model, guidance)
    if name == "gamma":
        tuned = tuned_for(model, steps, gamma) if scale is None else None
        if tuned is not None:
            return Method(name, tuned.grid(), tuned.gamma, steps)
        return Method(name, _karras(model, steps), as_gamma(gamma or 0.0), steps, scale)
    if name == "consistency":
        return Method(name, _karras(model, steps), None, steps, scale)
    calls = {"heun": 2 * steps - 1, "midpoint": 2 * steps}.get(name, steps)
    return Method(name, to_zero(_karras(model, steps - 1)), None, calls, scale)


def _karras(model: RangedDenoiser, steps: int) -> Tensor:
    return _grid(steps, float(model.sigma_min), float(model.sigma_max))


@functools.lru_cache(256)
def _grid(steps: int, low: float, high: float) -> Tensor:
    return karras_grid(steps, low, high, dtype=torch.float32)


def _scale(model: RangedDenoiser, guidance: Any) -> float:
    if not takes_guidance(model) and droppable(model) == ():
        raise ValueError("guidance needs a model with classes, and this one has none: leave it out")
    return as_number(guidance, "guidance")


@dataclass(frozen=True)
class Part:
    """What one request asks of a plan that it may share with others: images 0 … num − 1 of a seed. condition: of those images, as
    `ctm.sampling.generation.conditions_for` gives it, or None. marks: their watermarks."""

    num: int
    seed: int
    condition: Condition = None
    marks: Marks | None = None


def generation(
    model: RangedDenoiser, method: Method, parts: Sequence[Part], device: torch.device | None = None
) -> Steps:
    """The plan of the images that `ctm.generate` makes of each part's seed, condition and marks, of all parts together and in
    their order.

    The parts have fields of one kind, and all have marks, of one key, or none has. device: where the model is, None to look.
    Raises ValueError for parts that do not fit together, or not to the method."""
    who = [(part.seed, index) for part in parts for index in range(part.num)]
    marks = [part.marks for part in parts if part.marks is not None]
    if marks and len(marks) < len(parts):
        raise ValueError("either all images of a plan are marked or none")
    noise, device = ImageNoise.of(who, Marks.together(marks) if marks else None), device or device_of(model)
    like = torch.empty(len(who), *model.shape, device=device)
    x = method.levels[0].to(like) * noise(like)
    chosen: Sampler[Any] = getattr(sampling, method.sampler)
    steps = chosen.steps if method.gamma is None else partial(chosen.steps, gamma=method.gamma)
    condition = to(cat([part.condition for part in parts], [part.num for part in parts]), device)
    if takes_guidance(model):  # an input, set for all: so requests with and without it can share a call
        scale = 1.0 if method.guidance is None else method.guidance
        return steps(
            x, method.levels, condition=with_field(condition, GUIDANCE, like.new_full((len(who),), scale)), noise=noise
        )
    plan = steps(x, method.levels, condition=condition, noise=noise)
    if method.guidance is None or condition is None:
        return plan
    return guided(plan, method.guidance, droppable(model))


def joinable(model: RangedDenoiser, method: Method, part: Part, device: torch.device) -> Joinable:
    """The plan of `generation` of a part, that others of the same method can be made with: what the noise, the checks and the
    loop of the sampler cost is then paid once for all of them, and no longer for each."""
    kind = (method.key, _kind(part.condition), part.marks is None)
    return Joinable(kind, part, lambda parts: generation(model, method, parts, device))


def _kind(condition: Condition) -> Hashable:
    """Equal for conditions that can stand in one plan without any of them getting a field that it did not have."""
    if not isinstance(condition, Mapping):
        return condition is None
    return tuple((name, value.dtype, value.shape[1:]) for name, value in sorted(condition.items()))


def later(make: Callable[[], Steps]) -> Steps:
    """The plan that `make` gives, made when its first request is asked for: in the thread of the network, which then does not
    compete for Python's lock with the threads that ask."""
    return (yield from make())


def guided(steps: Steps, scale: float, fields: tuple[str, ...] | None = None) -> Steps:
    """A plan under classifier-free guidance (arXiv 2207.12598): each request asks for its rows twice, with the condition and
    without the named fields (None: without any), and

        D_w = D_∅ + w·(D_y − D_∅),   G_w = G_∅ + w·(G_y − G_∅)

    The second is the same combination of g, since G is (s/t)·x + (1 − s/t)·g with the same x. scale: w, 1 is the plan itself."""

    def ask(request: Request) -> Steps:
        none = absent(request.condition, fields)
        if scale == 0:
            return (yield _with(request, request.x, request.t, none, 1))
        pair = cat([request.condition, none], [len(request.x)] * 2)
        both = yield _with(request, torch.cat([request.x] * 2), torch.cat([request.t] * 2), pair, 2)
        conditional, unconditional = both.chunk(2)
        return unconditional + scale * (conditional - unconditional)

    return steps if scale == 1 else _asked(steps, ask)


def _asked(steps: Steps, ask: Callable[[Request], Steps]) -> Steps:
    """The plan with each request put by a generator of its own."""
    request = next(steps)
    while True:
        answer = yield from ask(request)
        try:
            request = steps.send(answer)
        except StopIteration as done:
            return done.value


def _with(request: Request, x: Tensor, t: Tensor, condition: Condition, times: int) -> Request:
    if isinstance(request, Jump):
        return Jump(x, t, torch.cat([request.s] * times), condition)
    return Denoise(x, t, condition)


def watched(steps: Steps, calls: int, previews: int, seen: Callable[[int, Tensor], object]) -> Steps:
    """The plan itself, which tells what it sees on the way: seen(index, images) for `previews` of its requests, evenly spread
    and none of them the last. images: the answer of a denoiser, or g of a jump, the network's present guess, like x.

    calls: the number of requests. A plan of fewer than previews + 1 shows fewer."""
    if previews < 1 or calls < 2:
        return steps
    at = sorted({round(calls * (index + 1) / (previews + 1)) - 1 for index in range(previews)} & set(range(calls - 1)))
    numbers = itertools.count()

    def ask(request: Request) -> Steps:
        answer = yield request
        number = next(numbers)
        if number in at:
            seen(at.index(number), guess_of(request, answer))
        return answer

    return _asked(steps, ask)


def guess_of(request: Request, answer: Tensor) -> Tensor:
    """The clean image that an answer of the network stands for: D, or g = (G − (s/t)·x)/(1 − s/t) of a jump."""
    if isinstance(request, Denoise):
        return answer
    ratio = (request.s / request.t).reshape(-1, *[1] * (request.x.dim() - 1))
    return (answer - ratio * request.x) / (1 - ratio).clamp(min=1e-6)
