"""Which settings of a run may be others when it goes on: those that change nothing that it computes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Set
from typing import Any

from ctm.foreign.text import JSONObject
from ctm.training.engine import EngineSettings
from ctm.training.recipe import OLDER_NAMES, DataSettings, LoraSettings, ModelSettings, Recipe
from ctm.training.self_evaluation import EvaluationSettings

__all__ = ["FREE", "SOURCES", "check_settings", "decided", "source_differences"]

_PARTS = {
    "data": DataSettings,
    "engine": EngineSettings,
    "evaluation": EvaluationSettings,
    "lora": LoraSettings,
    "model": ModelSettings,
}

# What is written, shown or kept, and when training gives up: nothing of it moves a weight.
FREE = frozenset(
    {
        "checkpoint_every",
        "evaluation",
        "keep_checkpoints",
        "license",
        "log_every",
        "sample_every",
        "sample_minutes",
        "skip_limit",
        "trackers",
    }
)

# Where something comes from: another place with the same content is the same. The digest of the content decides.
SOURCES = {
    "data.channels": "data",
    "data.condition": "data",
    "data.image": "data",
    "data.label": "data",
    "data.max_gb": "data",
    "data.name": "data",
    "data.size": "data",
    "data.split": "data",
    "data.unlabelled": "data",
    "student": "student",
    "teacher": "teacher",
    "teacher_guide": "teacher_guide",
}


def decided(path: str) -> str:
    """What becomes of a setting that differs: "free", "steps", the source whose digest decides, or "computed" for any that is
    not named here: a step or a draw may depend on it."""
    plain = path.split("[")[0]
    names = [plain.rsplit(".", cut)[0] for cut in range(plain.count(".") + 1)]
    for name in names:
        if name == "steps":
            return "steps"
        if name in FREE:
            return "free"
        if name in SOURCES:
            return SOURCES[name]
    return "computed"


def check_settings(
    before: Mapping[str, Any], now: Mapping[str, object], recipe: Recipe, *, place: str, reached: int, equal: Set[str]
) -> list[str]:
    """Lines that say what changed between the settings that a run directory holds and those given, where it can go on.

    recipe: made of the settings given. place: the directory, for the sentence. reached: steps taken so far. equal: the sources
    whose digests were compared and are the same. Raises ValueError naming the settings that would make it another run."""
    before, now = _with_defaults(before), _with_defaults(now)
    kinds = {text: decided(path) for path, text in _differences(before, now)}
    refused = [
        text for text, kind in kinds.items() if kind == "computed" or (kind in SOURCES.values() and kind not in equal)
    ]
    if refused:
        raise ValueError(
            f"{place} holds a run with other settings ({'; '.join(refused[:4])}). Use another --out, or repeat "
            f"the settings of {place}/config.yaml to continue that run"
        )
    if "steps" in kinds.values():
        _check_length(before["steps"], recipe, place, reached)
    return [f"other settings than before, which change nothing computed so far: {'; '.join(kinds)}"] if kinds else []


def source_differences(before: Mapping[str, object], now: Mapping[str, object]) -> dict[str, list[str]]:
    """The settings that name where data, teacher and starting student come from, where they differ, by the source."""
    found: dict[str, list[str]] = {}
    for path, text in _differences(_with_defaults(before), _with_defaults(now)):
        if decided(path) in SOURCES.values():
            found.setdefault(decided(path), []).append(text)
    return found


def _check_length(steps: int, recipe: Recipe, place: str, reached: int) -> None:
    """Raises ValueError where a run of `recipe.steps` steps would have taken the first `reached` steps otherwise than one of
    `steps` steps did."""
    if recipe.steps < reached:
        raise ValueError(
            f"{place} has taken {reached} steps already, and --steps {recipe.steps} are fewer: give {reached} or more, or use "
            "another --out"
        )
    former = dataclasses.replace(recipe, steps=steps)
    for step in range(reached):
        what = None
        if former.learning_rate_factor(step) != recipe.learning_rate_factor(step):
            what = "the learning rate falls over its last steps (decay_fraction)"
        elif recipe.schedule is not None and recipe.schedule(step, steps) != recipe.schedule(step, recipe.steps):
            what = "its schedule spreads over all steps"
        if what is not None:
            raise ValueError(
                f"{place} holds a run of {steps} steps that cannot become one of {recipe.steps}: {what}, so that step {step + 1} "
                f"of the {reached} taken would have been another. Start a new run from its weights: --student {place} with a "
                "new --out"
            )


def _with_defaults(before: Mapping[str, Any], kind: type[Any] = Recipe) -> JSONObject:
    """Settings that an older version wrote, with the defaults of those it did not know."""
    found = dict(before)
    for older, name in OLDER_NAMES.items() if kind is Recipe else ():
        value = found.pop(older, None)
        found |= {name: value} if value is not None else {}
    for field in dataclasses.fields(kind):
        if field.name not in (*found, *OLDER_NAMES) and field.default is not dataclasses.MISSING:
            found[field.name] = field.default
        if kind is Recipe and field.name in _PARTS and isinstance(found.get(field.name), Mapping):
            found[field.name] = _with_defaults(found[field.name], _PARTS[field.name])
    if kind is DataSettings:
        found["split"] = found["split"] or "train"
    return found


def _differences(before: object, now: object, path: str = "") -> list[tuple[str, str]]:
    """Settings that differ, as (path, 'path: before there, now here')."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        keys = sorted(before.keys() | now.keys())
        return [
            d for key in keys for d in _differences(before.get(key), now.get(key), f"{path}.{key}" if path else key)
        ]
    if isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        return [d for i, pair in enumerate(zip(before, now, strict=True)) for d in _differences(*pair, f"{path}[{i}]")]
    return [] if before == now else [(path, f"{path}: {before} there, {now} here")]
