"""What a model takes as its condition: labels, arrays, or both. It is kept in config.json."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ctm.arguments import as_labels, checked, words_for
from ctm.conditions import GUIDANCE, LABELS, MASK, PRESENT, Condition, as_tensor, is_flag_of

__all__ = ["Arrays", "Conditioner", "Labels", "conditioner_from"]

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")


@dataclass(frozen=True)
class Conditioner:
    """What a model takes as its condition: `num_classes` labels (0: none) and `fields`, names to shapes without B.

    always: fields that are never absent, and the number that stands where none is given; guidance leaves them as they are.
    `Labels(10)` and `Arrays({"observation": (20,)})` make one, `Labels(10) | Arrays(…)` takes both. Raises ValueError for
    sizes and names of no condition."""

    num_classes: int = 0
    fields: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    always: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if isinstance(self.num_classes, bool) or not isinstance(self.num_classes, int) or self.num_classes < 0:
            raise ValueError(f"num_classes must be a whole number of at least 0, got {words_for(self.num_classes)}")
        for name, shape in self.fields.items():
            _check_name(name)
            _check_shape(name, shape)
        unknown = [name for name in self.always if name not in self.fields]
        if unknown:
            raise ValueError(f"always names {unknown[0]!r}, which is none of the fields: {_listed(self.fields)}")
        for name, value in self.always.items():
            if isinstance(value, bool | str) or not math.isfinite(value):
                raise ValueError(f"always needs a finite number for {name}, got {words_for(value)}")
        shapes = {name: tuple(int(side) for side in shape) for name, shape in self.fields.items()}
        object.__setattr__(self, "fields", shapes)
        object.__setattr__(self, "always", {name: float(value) for name, value in self.always.items()})

    def __or__(self, other: Conditioner) -> Conditioner:
        if not isinstance(other, Conditioner):
            return NotImplemented
        twice = sorted(self.fields.keys() & other.fields.keys()) + [LABELS] * bool(
            self.num_classes and other.num_classes
        )
        if twice:
            raise ValueError(f"both conditioners have {', '.join(twice)}: give each field once")
        classes = self.num_classes or other.num_classes
        return Conditioner(classes, {**self.fields, **other.fields}, {**self.always, **other.always})

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Conditioner) and self.as_json() == other.as_json()

    def __hash__(self) -> int:
        return hash((self.num_classes, tuple(self.fields.items()), tuple(self.always.items())))

    def __bool__(self) -> bool:
        """Whether the model takes a condition at all."""
        return bool(self.num_classes or self.fields)

    @property
    def given_fields(self) -> dict[str, tuple[int, ...]]:
        """The fields that a caller gives, names to shapes: all but the fields of `always`."""
        return {name: shape for name, shape in self.fields.items() if name not in self.always}

    @property
    def may_be_absent(self) -> tuple[str, ...]:
        """The names that guidance and dropout may leave out: labels and all fields but the fields of `always`."""
        own = tuple(self.given_fields)
        return (LABELS, *own) if self.num_classes else own

    def as_json(self) -> dict[str, object]:
        """The conditioner as config.json keeps it; `conditioner_from` reads it."""
        fields: dict[str, object] = {"fields": {name: list(shape) for name, shape in self.fields.items()}}
        fields |= {"always": dict(self.always)} if self.always else {}
        return {"num_classes": self.num_classes, **(fields if self.fields else {})}

    def check(self, condition: Any, x: Tensor) -> Condition:
        """The condition of the B samples of x as networks get it: on x's device, labels int64, floats in x's dtype.

        A model of labels alone takes labels (B,), or one whole number for all; another takes a mapping, in which a field may also
        be given once for all samples, without B. Raises ValueError for names that the model does not take, for unfitting
        shapes and types, labels out of range, and values that are not finite in a row that is present."""
        if not checked():
            return condition
        if not self.fields:
            named = isinstance(condition, Mapping) and set(condition) <= {LABELS}
            if isinstance(condition, Mapping) and not named:
                self._refuse(next(str(name) for name in condition if name != LABELS))
            return self._labels(condition.get(LABELS) if isinstance(condition, Mapping) else condition, x)
        if condition is None:
            return None
        if not isinstance(condition, Mapping):
            if not self.num_classes:
                raise ValueError(
                    f"this model takes a mapping with {_listed(self.fields)} as its condition, got {words_for(condition)}"
                )
            condition = {LABELS: condition}
        given: dict[str, Tensor] = {}
        for name, value in condition.items():
            if value is None:
                continue
            if name == LABELS and self.num_classes:
                labels = self._labels(value, x)
                assert labels is not None
                given[LABELS] = labels
            elif name in self.fields:
                given[name] = _as_field(name, value, self.fields[name], x)
            elif is_flag_of(name, self.fields):
                given[name] = _as_flag(name, value, x)
            else:
                self._refuse(str(name))
        for name in self.fields:
            if name in given:
                _check_finite(name, given[name], given.get(name + PRESENT))
            elif name + PRESENT in given or name + MASK in given:
                raise ValueError(f"the condition says where {name!r} is present, but has no {name!r}: give both")
        return given

    def _refuse(self, name: str) -> None:
        known = (LABELS,) * bool(self.num_classes) + tuple(self.fields)
        takes = f"it takes {', '.join(known)}" if known else "it is unconditional"
        hint = "; train one whose network has guidance_embedding: true, or use ctm.guidance.ClassifierFree"
        said = f"the condition {name!r} is none that this model takes: {takes}"
        raise ValueError(said + (hint if name == GUIDANCE else ""))

    def _labels(self, labels: object, x: Tensor) -> Tensor | None:
        labels = as_labels(labels, x)
        if labels is not None and len(labels) and not labels.is_meta:  # meta holds no numbers to look at
            low, high = int(labels.min()), int(labels.max())
            if low < -1 or high >= self.num_classes:
                bad = high if high >= self.num_classes else low
                known = f"0 … {self.num_classes - 1}" if self.num_classes else "none, the model is unconditional"
                raise ValueError(f"label {bad} is not known to this model (classes: {known}); −1 is no label")
        return labels


class Labels(Conditioner):
    """The conditioner of a model of `num_classes` classes: labels int64 (B,), −1 for none."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)


class Arrays(Conditioner):
    """The conditioner of a model that takes arrays: {"observation": (20,), "text": (77, 768)}, shapes without B. always: as of
    `Conditioner`."""

    def __init__(self, fields: Mapping[str, Sequence[int]], always: Mapping[str, float] | None = None) -> None:
        super().__init__(0, {name: _sides(shape) for name, shape in fields.items()}, always or {})


def conditioner_from(settings: object, num_classes: int = 0) -> Conditioner:
    """The conditioner in a config.json or a recipe: a `Conditioner` as it is, a mapping as of `Conditioner.as_json`, None:
    `num_classes` labels. Raises ValueError for anything else, and where both give another number of classes."""
    if settings is None:
        return Labels(num_classes) if num_classes else Conditioner()
    if isinstance(settings, Conditioner):
        found = settings
    else:
        known = {"num_classes", "fields", "always"}
        if not isinstance(settings, Mapping) or set(settings) - known:
            raise ValueError(f"a conditioner is a mapping with {', '.join(sorted(known))}, got {words_for(settings)}")
        fields, always = settings.get("fields") or {}, settings.get("always") or {}
        if not isinstance(fields, Mapping) or not isinstance(always, Mapping) or len(fields) > 64:
            raise ValueError(
                "a conditioner's fields are a mapping of at most 64 names to shapes, its always one to numbers"
            )
        shapes = {name: _sides(shape) for name, shape in fields.items()}
        found = Conditioner(settings.get("num_classes", num_classes), shapes, always)
    if num_classes and found.num_classes != num_classes:
        raise ValueError(f"num_classes is {num_classes}, but the conditioner has {found.num_classes}: give one of them")
    return found


def _as_field(name: str, value: object, shape: tuple[int, ...], x: Tensor) -> Tensor:
    """A field (B, *shape) in x's dtype, on its device; one without B is the same for all samples."""
    tensor = as_tensor(name, value)
    if tensor.is_complex() or tensor.dtype == torch.bool:
        raise ValueError(f"the condition {name!r} must be real numbers, got {tensor.dtype}")
    if tuple(tensor.shape) == shape:
        tensor = tensor.expand(len(x), *shape)
    if tuple(tensor.shape) != (len(x), *shape):
        sides = ", ".join(str(side) for side in (len(x), *shape))
        raise ValueError(f"the condition {name!r} must have shape ({sides}), got {tuple(tensor.shape)}")
    return tensor.to(device=x.device, dtype=x.dtype)


def _as_flag(name: str, value: object, x: Tensor) -> Tensor:
    tensor = as_tensor(name, value)
    wanted = 2 if name.endswith(MASK) else 1
    if tensor.dtype != torch.bool or tensor.dim() != wanted or len(tensor) != len(x):
        sides = f"({len(x)}, length)" if wanted == 2 else f"({len(x)},)"
        raise ValueError(f"the condition {name!r} must be bool {sides}, got {words_for(value)}")
    return tensor.to(x.device)


def _check_finite(name: str, value: Tensor, present: Tensor | None) -> None:
    """Raises ValueError for a value that is no number in a row that is present; an accelerator's are not looked at."""
    if value.device.type != "cpu":
        return
    finite = value.flatten(1).isfinite().all(dim=1) if value.dim() > 1 else value.isfinite()
    if not bool((finite if present is None else finite | ~present).all()):
        raise ValueError(
            f"the condition {name!r} has values that are not finite: say {name}_present = False for such rows"
        )


def _check_name(name: object) -> None:
    if not isinstance(name, str) or not _NAME.fullmatch(name) or name == LABELS or name.endswith((PRESENT, MASK)):
        raise ValueError(
            f"a field's name is letters, digits and _, not labels and not ending in {PRESENT} or {MASK}, got {words_for(name)}"
        )


def _sides(shape: Any) -> tuple[int, ...]:
    return tuple(shape) if isinstance(shape, list | tuple) else shape


def _check_shape(name: str, shape: Any) -> None:
    sides = shape if isinstance(shape, list | tuple) else None
    whole = sides is not None and all(isinstance(side, int) and not isinstance(side, bool) for side in sides)
    if not whole or len(shape) > 4 or any(side < 1 for side in shape) or math.prod(shape) > 1 << 28:
        raise ValueError(
            f"the shape of field {name!r} is up to 4 whole numbers above 0, without B, got {words_for(shape)}"
        )


def _listed(names: Any) -> str:
    return ", ".join(names) or "no fields"
