"""What is evaluated: a model under a sampler with its settings, and the record of these."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ctm import sampling
from ctm.conditions import Condition
from ctm.evaluation.extractors import checksum_of
from ctm.evaluation.sources import ModelSource, Source
from ctm.foreign.text import JSONObject, read_yaml
from ctm.guidance import at_scale
from ctm.models import AnyModel
from ctm.models.grids import TunedGrid, tuned_for
from ctm.models.guided import takes_guidance
from ctm.models.protocol import Denoiser, can_jump
from ctm.noise import karras_grid, to_zero

__all__ = ["SAMPLERS", "Plan", "Subject", "make_plans", "subject_of", "title_of", "who_of"]

SAMPLERS = ("gamma", "euler", "heun", "dpmpp_2m")
_RHO = 7.0


@dataclass(frozen=True)
class Subject:
    """A model to evaluate. role: model, teacher or peer. name: how the user asked for it. checksum: of its weights. ema: the
    decay of the average that the weights are, None if no recipe tells."""

    role: str
    name: str
    model: AnyModel
    checksum: str
    ema: float | None


@dataclass(frozen=True)
class Plan:
    """A subject under one sampler. levels and method make its samples; record is what a reader needs to repeat them."""

    subject: Subject
    levels: Tensor
    method: Callable[..., Tensor]
    record: JSONObject

    @property
    def title(self) -> str:
        """A short title for tables and pictures."""
        return title_of(self.record)

    def source(self, model: Denoiser, count: int, condition: Condition, device: torch.device) -> Source:
        """`count` samples of the model, which is the subject's where it computes; condition: of them."""
        return ModelSource(model, count, self.levels, self.method, condition, self.record["seed"], device)


def who_of(record: JSONObject) -> str:
    """Whose samples a record is of, in tables and pictures: the model, the teacher, or a peer by its name and sampler."""
    if record["role"] != "peer":
        return str(record["role"])
    return f"{Path(record['name']).name} ({record['sampler']})"


def title_of(record: JSONObject) -> str:
    """A short title of a record."""
    if record["role"] == "samples":
        return "samples"
    extra = f", γ = {record['gamma']:g}" if record["gamma"] else ""
    grid = ", tuned grid" if record["grid"]["kind"] == "tuned" else ""
    guidance = "" if record["guidance"] is None else f", guidance {record['guidance']:g}"
    return f"{who_of(record)}, {record['evaluations']}{extra}{grid}{guidance}"


def subject_of(role: str, name: str, model: AnyModel) -> Subject:
    """The subject of a loaded model."""
    return Subject(role, name, model, checksum_of(model), _ema(Path(name)))


def _ema(directory: Path) -> float | None:
    for file in (directory / "config.yaml", directory / "recipe.yaml", directory.parent / "config.yaml"):
        if file.is_file():
            settings = read_yaml(file)
            return settings.get("ema") if isinstance(settings, dict) else None
    return None


def make_plans(
    subject: Subject,
    *,
    steps: Sequence[int] | None,
    gammas: Sequence[float] | None = None,
    sampler: str | None = None,
    grid: str | None = None,
    seed: int = 0,
    guidance: float | None = None,
) -> list[Plan]:
    """One plan for each number of steps and each γ. A single jump adds no noise, so γ is not varied there.

    steps: jumps, or noise levels of the other samplers; None: 1, 2, 4, or 18. sampler: None for jumps if the model has them,
    else Heun. gammas None and grid None: samples as `ctm.generate` makes them, on the grid that the model keeps for this
    number of steps and with its γ, else on the Karras grid with γ = 0. grid "karras": on the Karras grid. guidance: the
    scale of classifier-free guidance, for which no grid was tuned. Raises ValueError for a sampler that is unknown or does
    not fit the model, and for another grid."""
    jumps = can_jump(subject.model)
    name = sampler or ("gamma" if jumps else "heun")
    if name not in SAMPLERS:
        raise ValueError(f"--sampler must be one of {', '.join(SAMPLERS)}, got {name!r}")
    if name == "gamma" and not jumps:
        raise ValueError(f"{subject.name} cannot jump: choose --sampler heun, euler or dpmpp_2m")
    if name != "gamma" and not callable(getattr(subject.model, "denoise", None)):
        raise ValueError(f"{subject.name} has no denoise(x, t, condition): choose --sampler gamma")
    counts = list(steps or ((1, 2, 4) if name == "gamma" else (18,)))
    if grid not in (None, "karras"):
        raise ValueError(f"--grid must be karras, or left out for the model's own, got {grid!r}")
    if name != "gamma" and list(gammas or [0.0]) != [0.0]:
        raise ValueError(f"--gamma belongs to jumps, and the sampler of {subject.name} is {name}: leave it out")
    if min(counts) < (1 if name == "gamma" else 2):
        raise ValueError(f"--steps must be at least {1 if name == 'gamma' else 2} for {name}, got {min(counts)}")
    if guidance is not None:
        at_scale(subject.model, guidance)  # says where it cannot be guided
        grid = "karras"
    if name != "gamma":
        return [_guided(_denoising(subject, name, count, seed), guidance) for count in counts]
    wanted: list[float | None] = [None] if gammas is None else [*sorted(set(gammas))]
    return [
        _guided(
            _jumping(subject, count, gamma, None if grid == "karras" else tuned_for(subject.model, count, gamma), seed),
            guidance,
        )
        for gamma in wanted
        for count in counts
        if count > 1 or gamma == wanted[0]
    ]


def _guided(plan: Plan, scale: float | None) -> Plan:
    """The plan under classifier-free guidance. It takes two evaluations instead of one, unless the scale is an input of the
    network, or is 0 or 1."""
    if scale is None:
        return plan

    def method(model: Denoiser, x: Tensor, grid: Tensor, **options: Any) -> Tensor:
        found: Tensor = plan.method(at_scale(model, scale), x, grid, **options)
        return found

    opinions = 1 if takes_guidance(plan.subject.model) or scale in (0, 1) else 2
    record = plan.record | {"guidance": scale, "evaluations": opinions * plan.record["evaluations"]}
    return replace(plan, method=method, record=record)


def _record(subject: Subject, sampler: str, steps: int, evaluations: int, seed: int) -> JSONObject:
    model = subject.model
    return {
        "role": subject.role,
        "name": subject.name,
        "checksum": subject.checksum,
        "ema": subject.ema,
        "sampler": sampler,
        "steps": steps,
        "evaluations": evaluations,
        "gamma": None,
        "form": None,
        "grid": {"kind": "karras", "rho": _RHO, "sigma_min": model.sigma_min, "sigma_max": model.sigma_max},
        "guidance": None,
        "rejection": False,
        "seed": seed,
        "precision": str(next(model.parameters(), torch.empty(0)).dtype).removeprefix("torch."),
    }


def _denoising(subject: Subject, name: str, count: int, seed: int) -> Plan:
    grid = karras_grid(count - 1, subject.model.sigma_min, subject.model.sigma_max, _RHO, dtype=torch.float32)
    evaluations = 2 * count - 1 if name == "heun" else count
    record = _record(subject, name, count, evaluations, seed)
    record["grid"]["end"] = 0.0
    return Plan(subject, to_zero(grid), getattr(sampling, name), record)


def _jumping(subject: Subject, count: int, gamma: float | None, tuned: TunedGrid | None, seed: int) -> Plan:
    chosen = gamma if gamma is not None else 0.0 if tuned is None else tuned.gamma
    sampling.gamma_plan([1.0, 0.5], chosen)  # checks γ before anything is computed
    grid = karras_grid(count, subject.model.sigma_min, subject.model.sigma_max, _RHO, dtype=torch.float32)
    record = _record(subject, "gamma", count, count, seed) | {"gamma": chosen, "form": "paper"}
    if tuned is not None:
        grid = tuned.grid()
        ends = {"sigma_min": subject.model.sigma_min, "sigma_max": subject.model.sigma_max}
        record["grid"] = {"kind": "tuned", "levels": list(tuned.levels), **ends}
    return Plan(subject, grid, partial(sampling.gamma, gamma=chosen), record)
