"""Samplers made of jumps. Each is a plan, a generator of (t, stop, fresh): jump from t to stop, then add noise of standard
deviation fresh; one loop drives them all."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Literal

import torch
from torch import Tensor

from ctm.arguments import as_count, as_levels, as_number, as_state, words_for
from ctm.conditions import Condition, as_condition, rows, takes_labels
from ctm.models.protocol import Jumper, jumper
from ctm.requests import Jump, Steps
from ctm.sampling.common import Callback, Noise, Step, check_start, fresh_noise, level_values
from ctm.sampling.driving import drive, jump_sampler

__all__ = [
    "Plan",
    "consistency",
    "consistency_plan",
    "gamma",
    "gamma_plan",
    "jump_to_many",
    "resampling_plan",
    "two_level",
    "two_level_plan",
]

Plan = Iterator[tuple[float, float, float]]
Form = Literal["paper", "code"]


def _paper_stop(level: float, share: float, lowest: float) -> float:
    """max(√(1−γ²)·t₊, t_N)."""
    return max(share * level, lowest)


def _code_stop(level: float, share: float, lowest: float) -> float:
    """√(1−γ²)·(t₊ − t_N) + t_N   (sony/ctm, cm/sample_util.py: sample_gamma_multistep, with t_N = 0.002)."""
    return share * (level - lowest) + lowest


_STOPS: dict[str, Callable[[float, float, float], float]] = {"paper": _paper_stop, "code": _code_stop}


def as_gamma(gamma: object, name: str = "gamma") -> float:
    """γ as a float. Raises ValueError for anything but a number in [0, 1]."""
    return as_number(gamma, name, 0, 1, why="0 jumps deterministically, 1 is consistency-model multistep")


def gamma_plan(grid: Iterable[float], gamma: float, form: Form = "paper") -> Plan:
    """The jumps of γ-sampling on the levels of `grid`. Raises ValueError for gamma outside [0, 1] or an unknown form."""
    gamma = as_gamma(gamma)
    if form not in _STOPS:
        raise ValueError(f"form must be one of {', '.join(_STOPS)}, got {form!r}")
    levels = [float(level) for level in grid]
    share, lowest = math.sqrt(1 - gamma**2), levels[-1]

    def jumps() -> Plan:
        for t, level in itertools.pairwise(levels[:-1]):
            stop = level if gamma == 0 else _STOPS[form](level, share, lowest)
            yield t, stop, math.sqrt(max(level**2 - stop**2, 0.0))
        yield levels[-2], lowest, 0.0

    return jumps()


def consistency_plan(grid: Iterable[float]) -> Plan:
    """Jump to the last level each time, add noise up to the next: consistency models' multistep (arXiv 2303.01469, alg. 1)."""
    return gamma_plan(grid, 1.0)


def resampling_plan(grid: Iterable[float], rounds: int) -> Plan:
    """`consistency_plan` with `rounds` jumps from each level: after all but the last the noise goes up to that level again."""
    levels, rounds = [float(level) for level in grid], as_count(rounds, "rounds")
    for t, _, fresh in gamma_plan(levels, 1.0):
        for _ in range(rounds - 1):
            yield t, levels[-1], math.sqrt(t**2 - levels[-1] ** 2)
        yield t, levels[-1], fresh


def two_level_plan(grid: Iterable[float]) -> Plan:
    """grid (t0, s, s', t_end): jump t0 → s, add noise up to s' ≥ s, jump to t_end. Raises ValueError for other grids."""
    levels = [float(level) for level in grid]
    if not all(math.isfinite(level) for level in levels):
        raise ValueError(f"two_level needs finite levels, got {levels}")
    if len(levels) != 4 or not levels[0] > levels[1] or not levels[0] >= levels[2] >= levels[1] >= levels[3] > 0:
        raise ValueError(f"two_level needs four levels t0 > s ≤ s' with t0 ≥ s' and s ≥ t_end > 0, got {levels}")
    t0, s, up, end = levels
    return iter([(t0, s, math.sqrt(up**2 - s**2)), (up, end, 0.0)])


def follow(
    plan: Plan,
    x: Tensor,
    *,
    condition: Condition = None,
    noise: Noise | None = None,
    callback: Callback | None = None,
    correct: Callable[[Tensor], Tensor] | None = None,
) -> Steps:
    """The requests of a plan: x ← G(x, t, stop), then x ← x + fresh·ε where fresh > 0. One call of the model for each jump.
    `correct` changes what each jump gave, before the noise."""
    condition, draw = as_condition(condition, as_state(x)), fresh_noise(noise)
    for index, (t, stop, fresh) in enumerate(plan):
        t_now, s_now = (torch.full((len(x),), level, dtype=x.dtype, device=x.device) for level in (t, stop))
        x = yield Jump(x, t_now, s_now, condition)
        if correct is not None:
            x = correct(x)
        if fresh > 0:
            x = x + fresh * draw(x)
        if callback is not None:
            callback(Step(index, t_now[0], s_now[0], x, denoised=None))
    return x


@takes_labels
def jump_to_many(
    model: Jumper, x: Tensor, t: Tensor | float, levels: Tensor, *, condition: Condition = None, batch_size: int = 64
) -> Tensor:
    """Jumps from one state to several levels, G(x, t, s) for each s of `levels`, the model being called on up to batch_size of
    the S·B samples together instead of S times on B: the same values, and less time where a call costs more than its samples
    (few samples, small networks). No output of a layer is shared: after the first convolution all of a network sees s.

    x (B, *shape) at level t, a number or (B,); levels: a tensor (S,), each with sigma_min ≤ s ≤ t, in any order; condition: of
    the B samples, or None. Returns (S, B, *shape). Raises ValueError for levels of another shape or above t, and for a model
    without `jump`."""
    model = jumper(model)
    if not isinstance(levels, Tensor) or levels.dim() != 1 or len(levels) == 0:
        raise ValueError(
            f"levels must be a tensor (S,) of noise levels, at least one, got {words_for(levels)}: torch.tensor makes one"
        )
    condition, start = as_condition(condition, as_state(x)), as_levels(t, x).to(x.dtype)
    batch_size = as_count(batch_size, "batch_size")
    lowest = getattr(model, "sigma_min", 0.0) * (1 - 1e-6)  # a grid rounded to float32 may end a little below sigma_min
    if not (lowest <= float(levels.min()) and float(levels.to(x).max()) <= float(start.min())):
        asked = [round(level, 6) for level in levels.tolist()]
        raise ValueError(f"jumps need sigma_min ≤ s ≤ t, got levels {asked} from t = {float(start.min()):g}")
    return drive(model, _many(x, start, levels.to(x), condition, batch_size))


def _many(x: Tensor, t: Tensor, levels: Tensor, condition: Condition, batch_size: int) -> Steps:
    """Requests of the jumps from t (B,) to each of levels (S,), up to batch_size rows each -> (S, B, *shape)."""
    ends = levels[:, None].expand(-1, len(x)).flatten()
    whose = torch.arange(len(x), device=x.device).repeat(len(levels))
    parts = []
    for some, s in zip(whose.split(batch_size), ends.split(batch_size), strict=True):
        parts.append((yield Jump(x[some], t[some], s, rows(condition, some))))
    return torch.cat(parts).reshape(len(levels), *x.shape)


@jump_sampler
def gamma(
    x: Tensor,
    grid: Tensor,
    *,
    gamma: float = 0.0,
    form: Form = "paper",
    condition: Condition = None,
    noise: Noise | None = None,
    callback: Callback | None = None,
) -> Steps:
    """γ-sampling (CTM, arXiv 2310.02279, alg. 3): jump below each grid point, add noise up to it. N calls of the model.

        t' = max(√(1−γ²)·t₊, t_N);   x ← G(x, t, t');   x ← x + √(t₊² − t'²)·ε;   none after the last jump, to t_N

    x (B, *shape) at noise level grid[0]; grid (N + 1,) decreasing levels, e.g. karras_grid(N); gamma: 0 jumps
    deterministically, 1 is consistency-model multistep; form: "paper" as above, "code" the official repository's
    t' = √(1−γ²)·(t₊ − t_N) + t_N; condition: of the B samples, or None; noise(x) -> standard normal like x
    (torch.randn_like where None), called for each jump that adds noise; callback(Step) after each.
    Returns x at grid[-1], like x. Raises ValueError for gamma outside [0, 1], an unknown form or an unfitting grid.
    """
    check_start(x, grid, zero_end=False)
    return follow(
        gamma_plan(level_values(x, grid), gamma, form), x, condition=condition, noise=noise, callback=callback
    )


@jump_sampler
def consistency(
    x: Tensor,
    grid: Tensor,
    *,
    condition: Condition = None,
    noise: Noise | None = None,
    callback: Callback | None = None,
) -> Steps:
    """Consistency-model multistep: jump to grid[-1], add noise up to the next level, again. Arguments as in `gamma`."""
    check_start(x, grid, zero_end=False)
    return follow(consistency_plan(level_values(x, grid)), x, condition=condition, noise=noise, callback=callback)


@jump_sampler
def two_level(
    x: Tensor,
    grid: Tensor,
    *,
    condition: Condition = None,
    noise: Noise | None = None,
    callback: Callback | None = None,
) -> Steps:
    """grid (t0, s, s', t_end): jump t0 → s, add noise up to s' ≥ s, jump to t_end (sony/ctm: sample_gamma). Two calls.

    Other arguments as in `gamma`. Raises ValueError for a grid that is not of that form."""
    if not isinstance(grid, Tensor) or grid.dim() != 1:
        raise ValueError(f"grid must be a tensor of four noise levels t0, s, s', t_end, got {words_for(grid)}")
    return follow(two_level_plan(grid.tolist()), x, condition=condition, noise=noise, callback=callback)
