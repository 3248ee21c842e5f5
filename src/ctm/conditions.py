"""What a model is conditioned on: labels, arrays, or both.

A condition is None, labels int64 (B,) with −1 for none, or a mapping of names to tensors with leading dimension B:

    labels          int64 (B,), −1 for none
    NAME            a field of floats (B, *shape)
    NAME_present    bool (B,), whether the field of that row is there; where it is left out, all rows of NAME are
    NAME_mask       bool (B, L), which entries of a padded sequence (B, L, …) count

A field that is left out is absent in all rows. Methods pass conditions on and look at none; a model's `conditioner`
(`ctm.conditioner`) says what the model takes, and checks it.
"""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ParamSpec, TypeAlias, TypeVar

import torch
from torch import Tensor

from ctm.arguments import as_labels, checked, whole_numbers, words_for

__all__ = [
    "AUGMENT",
    "GUIDANCE",
    "LABELS",
    "MASK",
    "PRESENT",
    "Condition",
    "absent",
    "as_condition",
    "as_tensor",
    "cat",
    "condition_named",
    "dropped",
    "is_flag_of",
    "labels_of",
    "presence",
    "repeat",
    "rows",
    "takes_labels",
    "to",
    "with_field",
    "without_augment",
]

Condition: TypeAlias = Tensor | Mapping[str, Tensor] | None
LABELS, GUIDANCE = "labels", "guidance"  # the classes; the scale of the guidance that was distilled into a model
AUGMENT = (
    "labels of the augmentation"  # in training alone: (B, ·), what was done to the data; no field of data has this name
)
PRESENT, MASK = "_present", "_mask"
P = ParamSpec("P")
R = TypeVar("R")


def as_condition(condition: Any, x: Tensor) -> Condition:
    """A stranger's condition for the B samples of x, on its device: labels, or a mapping of tensors or arrays, each with leading
    dimension B. Whether the model takes them is the model's to say. Raises ValueError for anything else."""
    if condition is None or not checked():
        return condition
    if not isinstance(condition, Mapping):
        return as_labels(condition, x)
    found: dict[str, Tensor] = {}
    for name, value in condition.items():
        if value is None:
            continue
        if name == LABELS:
            found[name] = whole_numbers(value, len(x)).to(x.device)
            continue
        tensor = as_tensor(str(name), value)
        if tensor.dim() < 1 or len(tensor) != len(x):
            raise ValueError(
                f"the condition {name!r} needs a first dimension of {len(x)}, one row for each sample, got {words_for(value)}"
            )
        found[str(name)] = tensor.to(device=x.device, dtype=x.dtype if tensor.is_floating_point() else tensor.dtype)
    return found[LABELS] if set(found) == {LABELS} else found or None


def rows(condition: Condition, index: Any) -> Condition:
    """The condition of some rows: index is a slice or a tensor of numbers, as for tensors."""
    if condition is None or isinstance(condition, Tensor):
        return None if condition is None else condition[index]
    return {name: value[index] for name, value in condition.items()}


def to(condition: Condition, device: torch.device | str, dtype: torch.dtype | None = None) -> Condition:
    """The condition on a device, its fields in that dtype where one is given."""
    if condition is None or isinstance(condition, Tensor):
        return None if condition is None else condition.to(device)
    return {
        name: value.to(device=device, dtype=dtype if value.is_floating_point() else None)
        for name, value in condition.items()
    }


def repeat(condition: Condition, times: int) -> Condition:
    """The condition of B rows, `times` times over: the rows of the first copy, then of the next."""
    return cat([condition] * times, [0] * times)


def cat(conditions: Sequence[Condition], counts: Sequence[int]) -> Condition:
    """One condition of all rows. counts: how many rows each condition is of, which counts where one lacks what others have: its
    labels are −1 there, its fields absent. None where all are."""
    if all(condition is None for condition in conditions):
        return None
    if not any(isinstance(condition, Mapping) for condition in conditions):
        like = next(condition for condition in conditions if isinstance(condition, Tensor))
        return torch.cat([_labels_or_none(c, n, like) for c, n in zip(conditions, counts, strict=True)])
    parts = [_as_mapping(condition) for condition in conditions]
    names = list(dict.fromkeys(name for part in parts for name in part))
    flags = [
        name + PRESENT
        for name in names
        if name != LABELS and not is_flag_of(name, names) and any(name not in part for part in parts)
    ]
    joined: dict[str, Tensor] = {}
    for name in dict.fromkeys([*names, *flags]):
        held = [part[name] for part in parts if name in part]
        if not held:  # a flag that no part has
            fields = [part[name.removesuffix(PRESENT)] for part in parts if name.removesuffix(PRESENT) in part]
            held = [fields[0].new_zeros(len(fields[0]), dtype=torch.bool)]
        pieces = [_piece(name, part, count, held[0]) for part, count in zip(parts, counts, strict=True)]
        joined[name] = torch.cat(pieces)
    return joined


def _piece(name: str, part: Mapping[str, Tensor], count: int, like: Tensor) -> Tensor:
    """What one condition of `count` rows has under a name, or what stands there where it has nothing: no label, a field of
    zeros, and flags that say whether the field is there."""
    if name in part:
        return part[name]
    known = next(iter(part.values()), None)
    there = like.dtype == torch.bool and name.removesuffix(PRESENT).removesuffix(MASK) in part
    shape = (count if known is None else len(known), *like.shape[1:])
    return torch.full(shape, -1 if name == LABELS else there, dtype=like.dtype, device=like.device)


def presence(condition: Condition, name: str, count: int, device: torch.device | None = None) -> Tensor:
    """bool (count,): in which rows labels or a field are there."""
    if condition is None or (isinstance(condition, Tensor) and name != LABELS):
        return torch.zeros(count, dtype=torch.bool, device=device)
    if isinstance(condition, Tensor):
        return condition >= 0
    if name not in condition:
        return torch.zeros(count, dtype=torch.bool, device=device)
    if name == LABELS:
        return condition[LABELS] >= 0
    flag = condition.get(name + PRESENT)
    return torch.ones(count, dtype=torch.bool, device=condition[name].device) if flag is None else flag


def dropped(condition: Condition, where: Tensor, names: Sequence[str] | None = None) -> Condition:
    """The condition without the named fields (None: without any, but for the guidance scale and the labels of the
    augmentation) in the rows where the bool (B,) says so; values stay, flags and labels change."""
    if condition is None:
        return None
    if isinstance(condition, Tensor):
        return condition.masked_fill(where.to(condition.device), -1) if names is None or LABELS in names else condition
    changed = dict(condition)
    for name, value in condition.items():
        kept = name in (GUIDANCE, AUGMENT) if names is None else name not in names
        if kept or is_flag_of(name, condition):
            continue
        gone = where.to(value.device)
        if name == LABELS:
            changed[name] = value.masked_fill(gone, -1)
        else:
            changed[name + PRESENT] = presence(condition, name, len(value)) & ~gone
    return changed


def absent(condition: Condition, names: Sequence[str] | None = None) -> Condition:
    """The condition with the named fields absent in all rows (None: all but the guidance scale)."""
    if condition is None:
        return None
    if isinstance(condition, Tensor):
        return torch.full_like(condition, -1) if names is None or LABELS in names else condition
    value = next(iter(condition.values()), None)
    return (
        {}
        if value is None
        else dropped(condition, torch.ones(len(value), dtype=torch.bool, device=value.device), names)
    )


def with_field(condition: Condition, name: str, value: Tensor) -> Condition:
    """The condition with one field more, or another value (B, …) of it."""
    return {**_as_mapping(condition), name: value}


def without_augment(condition: Condition) -> tuple[Condition, Tensor | None]:
    """The condition without the labels of the augmentation, and these, None where it has none."""
    if not isinstance(condition, Mapping) or AUGMENT not in condition:
        return condition, None
    rest = {name: value for name, value in condition.items() if name != AUGMENT}
    return (rest[LABELS] if set(rest) == {LABELS} else rest or None), condition[AUGMENT]


def labels_of(condition: Condition) -> Tensor | None:
    """The labels in a condition, int64 (B,), None where it has none."""
    if condition is None or isinstance(condition, Tensor):
        return condition
    return condition.get(LABELS)


def takes_labels(function: Callable[P, R]) -> Callable[P, R]:
    """The function with `labels=` accepted as the older name of `condition=`, for one release. Raises ValueError where both
    are given."""

    @functools.wraps(function)
    def call(*args: P.args, **options: P.kwargs) -> R:
        if LABELS in options:
            if options.get("condition") is not None:
                raise ValueError("condition and labels are one argument under two names: give condition")
            warnings.warn(
                f"{function.__name__}(labels=…) is called condition=… now; labels goes with the next release",
                DeprecationWarning,
                stacklevel=2,
            )
            options["condition"] = options.pop(LABELS)
        return function(*args, **options)

    return call


def condition_named(function: Callable[..., R]) -> Callable[..., R]:
    """The function called with condition=, where it is a user's own and still names that argument labels, for one release."""
    try:
        names = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return function
    if LABELS not in names or "condition" in names:
        return function
    return lambda *args, condition=None, **options: function(*args, labels=condition, **options)


def _labels_or_none(condition: Condition, count: int, like: Tensor) -> Tensor:
    if isinstance(condition, Tensor):
        return condition
    return torch.full((count,), -1, dtype=torch.int64, device=like.device)


def _as_mapping(condition: Condition) -> Mapping[str, Tensor]:
    if condition is None:
        return {}
    return {LABELS: condition} if isinstance(condition, Tensor) else condition


def is_flag_of(name: str, names: Any) -> bool:
    """Whether a name is the presence or the mask of another one."""
    return any(name.endswith(end) and name.removesuffix(end) in names for end in (PRESENT, MASK))


def as_tensor(name: str, value: object) -> Tensor:
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"the condition {name!r} must be a tensor or an array, got {words_for(value)}") from error
