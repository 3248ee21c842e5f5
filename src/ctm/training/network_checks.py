"""Five checks of a network, a user's own or one of ours: whether models, training and all ways to teach a jump can use it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ctm.conditioner import Conditioner
from ctm.conditions import GUIDANCE, LABELS, PRESENT, Condition, dropped, rows
from ctm.foreign.text import raised, with_article
from ctm.objectives.derivatives import directional_derivative
from ctm.training.step import last_layer

__all__ = ["Finding", "check_network"]

_ROWS = 4
_STEP = 1e-7  # of the finite differences, in float64: embeddings such as 250·ln s turn fast
_CLOSE = 1e-4  # of rows alone and together, and of the two derivatives, relative to the largest value


@dataclass(frozen=True)
class Finding:
    """What one check found: its name, whether the network passed, and a sentence."""

    name: str
    passed: bool
    words: str


@dataclass(frozen=True)
class _Subject:
    """The network as it starts, the same with moved weights, so that nothing is hidden by a layer that starts at zero, and
    what to call them with."""

    fresh: nn.Module
    moved: nn.Module
    x: Tensor
    t: Tensor
    s: Tensor
    condition: Condition
    conditioner: Conditioner


def check_network(network: nn.Module, shape: Sequence[int], conditioner: Conditioner | None = None) -> list[Finding]:
    """The findings of the five checks, in order: call, rows, start, condition, derivatives.

    network: called as network(x, t, s, condition); it stays as it is. shape: of one sample. conditioner: what it is conditioned
    on, None: nothing. A check that raises has failed, and its words say with what."""
    conditioner = conditioner or Conditioner()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        fresh = copy.deepcopy(network).cpu().float().eval()
        x, t, s = torch.randn(_ROWS, *shape), torch.rand(_ROWS) + 0.5, 0.1 * torch.rand(_ROWS) + 0.01
        subject = _Subject(fresh, _moved(fresh), x, t, s, _condition(conditioner), conditioner)
        return [_found(name, check, subject) for name, check in _CHECKS.items()]


def _found(name: str, check: Callable[[_Subject], str], subject: _Subject) -> Finding:
    try:
        return Finding(name, True, check(subject))
    except _Failed as failed:
        return Finding(name, False, str(failed))
    except BaseException as error:  # a stranger's network raises what it likes, also SystemExit
        if isinstance(error, KeyboardInterrupt) or (isinstance(error, SystemExit) and type(error) is not SystemExit):
            raise  # Ctrl-C, and the end that a signal asks of the command
        return Finding(name, False, f"it raised {raised(error)}")


class _Failed(Exception):
    """A check that did not pass; the text says why."""


def _moved(network: nn.Module) -> nn.Module:
    """A copy whose weights are each moved by a tenth of what fan-in initialisation would give."""
    moved = copy.deepcopy(network)
    with torch.no_grad():
        for parameter in moved.parameters():
            fan_in = max(parameter[0].numel(), 1) if parameter.dim() > 1 else 1
            parameter.add_(torch.randn_like(parameter), alpha=0.3 * fan_in**-0.5)
    return moved


def _condition(conditioner: Conditioner) -> Condition:
    """A condition of the rows, each field absent in one of them."""
    labels = (torch.arange(_ROWS) % (conditioner.num_classes + 1) - 1) if conditioner.num_classes else None
    if not conditioner.fields:
        return labels
    found: dict[str, Tensor] = {} if labels is None else {LABELS: labels}
    for name, shape in conditioner.fields.items():
        found[name] = torch.ones(_ROWS, *shape) if name == GUIDANCE else torch.randn(_ROWS, *shape)
        if name not in conditioner.always:
            found[name + PRESENT] = torch.arange(_ROWS) != 1
    return found


def _call(subject: _Subject) -> str:
    """The output is like x, finite, with s and without, with a condition and without."""
    for s, condition in ((subject.s, subject.condition), (None, subject.condition), (subject.s, None)):
        with torch.no_grad():
            made = subject.moved(subject.x, subject.t, s, condition)
        if not isinstance(made, Tensor) or made.shape != subject.x.shape:
            got = tuple(made.shape) if isinstance(made, Tensor) else type(made).__name__
            raise _Failed(f"it must return a tensor of the shape of x, {tuple(subject.x.shape)}, got {got}")
        if not bool(made.isfinite().all()):
            raise _Failed("its output has values that are not finite")
    return (
        "network(x, t, s, condition) returns a finite tensor of the shape of x, also for s = None and condition = None"
    )


def _rows(subject: _Subject) -> str:
    """Each sample's output is what it is alone, and in training mode it does not change with the others of its batch."""
    with torch.no_grad():
        together = subject.moved(subject.x, subject.t, subject.s, subject.condition)
        parts = [slice(i, i + 1) for i in range(_ROWS)]
        alone = [subject.moved(subject.x[i], subject.t[i], subject.s[i], rows(subject.condition, i)) for i in parts]
    apart = _apart(torch.cat(alone), together)
    if not apart < _CLOSE:
        raise _Failed(
            f"a sample's output depends on the others in its batch: it differs by {apart:.1e} of the largest value"
        )
    apart = _apart_in_training(subject)
    if not apart < _CLOSE:
        kinds = sorted({type(m).__name__ for m in subject.moved.modules() if isinstance(m, _BatchNorm)})
        raise _Failed(
            "in training mode, network.train(), a sample's output depends on the others in its batch"
            f"{f', as {kinds[0]} does' if kinds else ''}: it changes by {apart:.1e} of the largest value when the others do. "
            "nn.GroupNorm and nn.LayerNorm look at one sample only"
        )
    return "a sample's output does not depend on the other samples of its batch, in training mode neither"


def _apart_in_training(subject: _Subject) -> float:
    """How far the first sample's output moves when the others are others, and so the last one's; in training mode.

    Dropout is no false alarm: both calls have the same random numbers at the same places, because their shapes and seeds are
    the same. Raises `_Failed` where the same call gives another output even so."""
    network = copy.deepcopy(subject.moved).train()

    def call(kept: int | None) -> Tensor:
        order, x = torch.arange(_ROWS), subject.x.clone()
        if kept is not None:  # each other sample's values of its neighbour
            order, x = order.roll(1), -x.roll(1, dims=0)
            order[kept], x[kept] = kept, subject.x[kept]
        torch.manual_seed(1)
        return network(x, subject.t[order], subject.s[order], rows(subject.condition, order))

    with torch.no_grad():
        first = call(None)
        if not torch.equal(first, call(None)):
            raise _Failed(
                "in training mode the same call with the same torch.manual_seed gives another output, so a run that goes on "
                "would not be the same run: draw random numbers by torch, and keep nothing between two calls"
            )
        return max(_apart(call(kept)[kept], first[kept]) for kept in (0, _ROWS - 1))


def _start(subject: _Subject) -> str:
    """A new student is its teacher: nothing depends on s; once weights have moved, something does."""
    with torch.no_grad():
        first, second = (subject.fresh(subject.x, subject.t, s, subject.condition) for s in (subject.s, subject.s / 2))
        moved = [subject.moved(subject.x, subject.t, s, subject.condition) for s in (subject.s, subject.s / 2)]
    if torch.equal(*moved):
        raise _Failed("its output never depends on s: it can be a diffusion model, and no jump can be taught to it")
    if not torch.equal(first, second):
        raise _Failed(
            "its output depends on s from the start: a student with its teacher's weights is not its teacher then. Let what "
            "comes from s begin at zero, as by nn.init.zeros_ on the layer that adds it"
        )
    return "what comes from s starts at zero and can be learned: a student with its teacher's weights starts as its teacher"


def _absence(subject: _Subject) -> str:
    """A condition matters where it is present, and its values do not where it is absent."""
    names = subject.conditioner.may_be_absent
    if not names:
        return "it takes no condition"
    everywhere = torch.ones(_ROWS, dtype=torch.bool)
    with torch.no_grad():
        for name in names:
            without = dropped(subject.condition, everywhere, [name])
            absent = subject.moved(subject.x, subject.t, subject.s, without)
            if torch.equal(absent, subject.moved(subject.x, subject.t, subject.s, subject.condition)):
                raise _Failed(f"its output never depends on {name}")
            if isinstance(without, dict) and name in without and name != LABELS:
                other = {**without, name: without[name] + 1}
                if not torch.equal(absent, subject.moved(subject.x, subject.t, subject.s, other)):
                    raise _Failed(f"where {name} is absent, its output depends on the values that stand there")
    return f"the output changes with {', '.join(names)}, and the values of an absent field do not matter"


def _derivatives(subject: _Subject) -> str:
    """The gradient reaches every weight; forward-mode derivatives are those of finite differences."""
    last = last_layer(subject.moved)
    if not isinstance(getattr(last, "weight", None), nn.Parameter):
        raise _Failed(
            f"its last_layer is {with_article(type(last).__name__)} without a weight, by whose gradient losses are balanced"
        )
    subject.moved(subject.x, subject.t, subject.s, subject.condition).square().sum().backward()
    idle = [name for name, p in subject.moved.named_parameters() if p.grad is None or not bool(p.grad.abs().sum() > 0)]
    subject.moved.zero_grad()
    if idle:
        raise _Failed(f"no gradient reaches {', '.join(idle[:3])}{', …' if len(idle) > 3 else ''}")
    double = copy.deepcopy(subject.moved).double()
    x, t, s = subject.x.double(), subject.t.double(), subject.s.double()
    condition = _double(subject.condition)
    direction = torch.randn_like(x)

    def along(x: Tensor, s: Tensor) -> Tensor:
        return double(x, t, s, condition)

    with torch.no_grad():
        _, forward = directional_derivative(along, (x, s), (direction, torch.ones_like(s)))
        step = along(x + _STEP * direction, s + _STEP) - along(x - _STEP * direction, s - _STEP)
    apart = _apart(forward, step / (2 * _STEP))
    if not apart < _CLOSE:
        raise _Failed(
            f"its forward-mode derivative differs from finite differences by {apart:.1e} of the largest value: Lagrangian and "
            "Eulerian cannot be used with it, Matching can"
        )
    return (
        "a gradient reaches every weight, and forward-mode derivatives are right: every way to teach a jump can be used"
    )


def _double(condition: Condition) -> Condition:
    if isinstance(condition, Tensor) or condition is None:
        return condition
    return {name: value.double() if value.is_floating_point() else value for name, value in condition.items()}


def _apart(a: Tensor, b: Tensor) -> float:
    """The largest difference, relative to the largest value."""
    return float((a - b).abs().max() / b.abs().max().clamp(min=1e-30))


_CHECKS: dict[str, Callable[[_Subject], str]] = {
    "call": _call,
    "rows": _rows,
    "start": _start,
    "condition": _absence,
    "derivatives": _derivatives,
}
