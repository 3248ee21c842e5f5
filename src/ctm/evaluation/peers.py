"""Models of other programs as rows beside ours: objects by import path, and pipelines of diffusers."""

from __future__ import annotations

import hashlib
import inspect
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ctm.conditioner import Conditioner
from ctm.data.notes import tell
from ctm.evaluation.extractors import checksum_of, file_checksum
from ctm.evaluation.pipelines import open_pipeline, pipeline_plans
from ctm.evaluation.plans import Plan, Subject, make_plans
from ctm.foreign.objects import imported_object, is_object_path
from ctm.models.protocol import can_jump

__all__ = ["ObjectModel", "object_subject", "peer_plans"]

_STEPS = re.compile(r"(.+)@(\d+(?:,\d+)*)")
_RANGE = {"sigma_min": 0.002, "sigma_max": 80.0}


class ObjectModel(nn.Module):
    """A user's object as an evaluation takes a model. It has `denoise(x, t, condition)` or `jump(x, t, s, condition)`, or both,
    or is a function D(x, t, condition), and says the `shape` of a sample. What else it does not say: no classes, no fields of a
    condition, noise levels from 0.002 to 80.

    Raises ValueError for an object without these, and for a shape that is none."""

    def __init__(self, model: object, name: str) -> None:
        super().__init__()
        shape = getattr(model, "shape", None)
        sides = tuple(shape) if isinstance(shape, list | tuple | torch.Size) else ()
        if not sides or not all(isinstance(side, int) and side > 0 for side in sides):
            raise ValueError(
                f"{name} does not say the shape of a sample: give the object shape, a tuple such as (3, 32, 32)"
            )
        calls = {call: getattr(model, call, None) for call in ("denoise", "jump")}
        if not any(callable(call) for call in calls.values()) and callable(model):
            calls["denoise"] = model
        given = {name: call for name, call in calls.items() if callable(call)}
        if not given:
            raise ValueError(
                f"{name} is no model: it has neither denoise(x, t, condition) nor jump(x, t, s, condition), and cannot be called"
            )
        self.model = model.eval() if isinstance(model, nn.Module) else model
        self.shape: tuple[int, ...] = sides
        self.conditioner = getattr(model, "conditioner", None) or Conditioner(getattr(model, "num_classes", None) or 0)
        self.num_classes, self.class_names = self.conditioner.num_classes, list(getattr(model, "class_names", ()))
        self.assumed = [f"{end} = {value:g}" for end, value in _RANGE.items() if not hasattr(model, end)]
        self.sigma_min, self.sigma_max = (float(getattr(model, end, value)) for end, value in _RANGE.items())
        for call, function in given.items():
            setattr(self, call, function)

    def checksum(self) -> str:
        """16 digits of the SHA-256 of the weights, of numbers and tensors that the object keeps, and of its class's file."""
        digest = hashlib.sha256(checksum_of(self).encode())
        for name, value in sorted(getattr(self.model, "__dict__", {}).items()):
            if isinstance(value, Tensor):
                digest.update(name.encode() + value.detach().cpu().flatten().numpy().tobytes())
            elif isinstance(value, bool | int | float | str):
                digest.update(f"{name} {value!r}".encode())
        file = inspect.getsourcefile(self.model if inspect.isfunction(self.model) else type(self.model))
        digest.update(b"" if file is None else file_checksum(Path(file)).encode())
        return digest.hexdigest()[:16]


def object_subject(role: str, path: str, asks: str) -> Subject:
    """The object of an import path as what is evaluated. asks: the option that names it, for errors. A line says what the object
    does not say and what stands for it. Raises ValueError as `imported_object` and `ObjectModel`."""
    model = ObjectModel(imported_object(path, asks), f"{asks} {path}")
    tell([f"assumed {words}: the object does not say" for words in model.assumed], path)
    subject: Any = Subject(role, path, model, model.checksum(), None)  # type: ignore[arg-type]
    return subject


def peer_plans(
    peers: Sequence[str],
    *,
    steps: Sequence[int] | None,
    gammas: Sequence[float] | None = None,
    sampler: str | None = None,
    seed: int = 0,
    prompts: str | None = None,
) -> list[Plan]:
    """A plan for each peer and each number of steps.

    peers: `module:object`, sampled by our samplers as a model is; or the directory or hub id of a pipeline of diffusers, sampled
    by its own scheduler. `@1,2,4` behind one gives its own numbers of steps. steps: of the others, None: as of `make_plans`;
    pipelines need them. gammas, sampler: for objects that jump; an object that only denoises is sampled by `sampler`, or Heun.
    prompts: a text file for pipelines that take text, with one line, or one for each class.
    Raises ValueError and FileNotFoundError for a peer that is not there, not allowed, or cannot make an image."""
    plans: list[Plan] = []
    for text in peers:
        named = _STEPS.fullmatch(text)
        place, own = (named[1], [int(count) for count in named[2].split(",")]) if named else (text, steps)
        if is_object_path(place):
            subject = object_subject("peer", place, "--peer")
            jumps = can_jump(subject.model) and sampler in (None, "gamma")
            chosen = None if sampler == "gamma" else sampler
            plans += make_plans(subject, steps=own, gammas=gammas if jumps else None, sampler=chosen, seed=seed)
        elif own is None:
            raise ValueError(f"--peer {place}: say how many steps it takes, as --peer {place}@1,2,4 or by --steps")
        else:
            plans += pipeline_plans(open_pipeline(place, prompts), place, own, seed)
    return plans
