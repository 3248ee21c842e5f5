"""What strangers pass to public functions, taken where it is plain what they mean, else refused in a sentence.

All raise ValueError, which says what came and what is allowed. None waits for a device other than the CPU, and a tensor that is
right already is returned as it is. A method whose first call was looked at goes on `inside` the boundary, where nothing is looked
at again: looking reads values back, and each reading waits for the device.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "as_count",
    "as_float_type",
    "as_labels",
    "as_levels",
    "as_number",
    "as_seed",
    "as_state",
    "checked",
    "inside",
    "whole_number",
    "whole_numbers",
    "words_for",
]

_SEEDS = 1 << 64
_INSIDE: ContextVar[bool] = ContextVar("ctm_inside", default=False)


def checked() -> bool:
    """Whether a call of a model is a stranger's, whose shapes, labels and levels are to be looked at."""
    return not _INSIDE.get()


@contextmanager
def inside() -> Iterator[None]:
    """Meanwhile a state, levels and labels are taken as they are: tensors (B, …), (B,) and (B,) of the right types. For loops
    whose first call was looked at and whose others are made of the same rows."""
    token = _INSIDE.set(True)
    try:
        yield
    finally:
        _INSIDE.reset(token)


def words_for(value: object) -> str:
    """A value and its type in a few words: 0.5 (float), an array of shape (2,) (ndarray), None."""
    kind = type(value).__name__
    if value is None:
        return "None"
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{value.dtype} of shape {tuple(value.shape)} ({kind})"
    text = repr(value)
    return f"{text if len(text) <= 40 else text[:40] + '…'} ({kind})"


def as_state(x: Any, name: str = "x") -> Tensor:
    """x (B, …), a floating-point tensor, as it is."""
    if not checked():
        return x
    if not isinstance(x, Tensor):
        raise ValueError(f"{name} must be a tensor (B, …), got {words_for(x)}: torch.as_tensor makes one")
    if x.layout != torch.strided:
        raise ValueError(f"{name} must be a dense tensor, got {x.layout}: x.to_dense() makes one")
    if not x.is_floating_point():
        raise ValueError(f"{name} must be floating point, got {x.dtype}: images are in [-1, 1]")
    if x.dim() < 1:
        raise ValueError(f"{name} must have a first dimension for the samples, (B, …), got shape {tuple(x.shape)}")
    return x


def as_levels(value: Any, x: Tensor, name: str = "t", *, zero: bool = False) -> Tensor:
    """Noise levels (B,) for the B samples of x, on its device: one number for all of them, or one for each.

    Numbers, and tensors on the CPU, must be finite and above 0 (zero: 0 is allowed); a tensor on an accelerator is not looked
    at."""
    if not checked():
        return value
    if isinstance(value, Tensor) and value.shape == (x.shape[0],) and value.is_floating_point():
        levels = value if value.device == x.device else value.to(x.device)
    else:
        levels = _new_levels(value, x, name)
    if value is levels and levels.device.type != "cpu":
        return levels
    values = levels if levels.device.type == "cpu" else torch.as_tensor(value)
    low, high = (float(end) for end in values.detach().aminmax()) if len(levels) else (1.0, 1.0)
    if (
        not (low >= 0 if zero else low > 0) or not high < math.inf
    ):  # NaN, which aminmax gives where there is any, is neither
        least = "at least 0" if zero else "above 0"
        raise ValueError(f"{name} is a noise level, finite and {least}, got {words_for(values.tolist())}")
    return levels


def _new_levels(value: object, x: Tensor, name: str) -> Tensor:
    wanted = f"{name} is a noise level: one number, or a tensor of shape ({len(x)},), one for each sample"
    if value is None or isinstance(value, bool | str | bytes):
        raise ValueError(f"{wanted}; got {words_for(value)}")
    try:
        levels = torch.as_tensor(value)
        if levels.is_floating_point() and not hasattr(value, "dtype"):
            levels = torch.as_tensor(
                value, dtype=torch.float64
            )  # Python's own precision, or float32 would cut digits off
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{wanted}; got {words_for(value)}") from error
    whole = levels.dtype in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
    if levels.shape not in ((), (x.shape[0],)) or not (levels.is_floating_point() or whole):
        raise ValueError(f"{wanted}; got {words_for(levels if isinstance(value, list | tuple) else value)}")
    python = not isinstance(value, Tensor)
    return levels.to(x.dtype if python or whole else levels.dtype).to(x.device).expand(x.shape[0])


def as_labels(labels: Any, x: Tensor) -> Tensor | None:
    """int64 labels (B,) for the B samples of x, on its device, −1 = none: one whole number for all, or a list, array or tensor
    with one for each; None stays None. Which classes there are is the model's to say."""
    if not checked():
        return labels
    right = isinstance(labels, Tensor) and labels.dtype == torch.int64 and labels.shape == (x.shape[0],)
    if labels is None or (right and labels.device == x.device):
        return labels
    return whole_numbers(labels, len(x)).to(x.device)


def whole_numbers(labels: object, count: int) -> Tensor:
    """Labels as int64 (count,) where they are."""
    wanted = f"labels must be whole numbers (int64): one for all, or {count} of them, one for each sample"
    try:
        found = torch.as_tensor(labels)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{wanted}; got {words_for(labels)}") from error
    empty = found.numel() == 0 and count == 0
    if not empty and (found.is_floating_point() or found.is_complex() or found.dtype == torch.bool):
        raise ValueError(f"{wanted}; got {words_for(labels)}")
    if found.shape not in ((), (count,)):
        raise ValueError(f"{wanted}; got shape {tuple(found.shape)}")
    return found.to(torch.int64).expand(count)


def as_number(
    value: object, name: str, low: float = -math.inf, high: float = math.inf, *, why: str = "", above: bool = False
) -> float:
    """A finite number in [low, high] (above: low itself is not allowed) as a float. why: what the ends mean, for the sentence."""
    number, range_ = _number(value), _range(low, high, above)
    if number is None or not math.isfinite(number):
        raise ValueError(
            f"{name} must be a finite number{range_ and ' '}{range_}, got {_shown(value)}{why and ': '}{why}"
        )
    if not low <= number <= high or (above and number == low):
        raise ValueError(f"{name} must be {range_}, got {value}{why and ': '}{why}")
    return number


def as_count(value: Any, name: str, least: int = 1, *, why: str = "") -> int:
    """A whole number of at least `least` as an int."""
    number = _number(value)
    if number is None or not math.isfinite(number) or int(number) != number or number < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, got {_shown(value)}{why and ': '}{why}")
    return int(value)


def as_float_type(value: object, name: str = "dtype") -> torch.dtype:
    """A type of floating-point numbers of two bytes or more. In one of whole numbers, or of one byte, small noise levels would
    be 0."""
    if not isinstance(value, torch.dtype) or not value.is_floating_point or value.itemsize < 2:
        shown = value if isinstance(value, torch.dtype) else words_for(value)
        raise ValueError(f"{name} must be a floating-point type such as torch.float32, got {shown}")
    return value


def as_seed(value: object, name: str = "seed") -> int:
    """A whole number of at least 0 and below 2^64, as torch takes them, as an int. One of floating point is none, also 2.0, and
    also in an array or a tensor."""
    seed = whole_number(value)
    if seed is None:
        shown = f"{value.item()}: " if getattr(value, "shape", None) == () and hasattr(value, "item") else ""
        raise ValueError(f"{name} must be a whole number, got {shown}{words_for(value)}")
    if not 0 <= seed < _SEEDS:
        limit = "at least 0" if seed < 0 else "below 2^64"
        raise ValueError(f"{name} must be {limit}, got {_shown(seed)}")
    return seed


def whole_number(value: Any) -> int | None:
    """A whole number of any library as an int; None for truth values, numbers of floating point (also 2.0) and anything else."""
    try:
        return None if _number(value) is None else operator.index(value)
    except TypeError:  # every array and tensor has __index__, and only those of whole numbers answer
        return None


def _number(value: Any) -> float | None:
    """A real number of any library, not a truth value or a text; None for anything else."""
    if isinstance(value, bool | str | bytes) or str(getattr(value, "dtype", "")) in ("bool", "torch.bool"):
        return None
    if not hasattr(value, "__float__") or getattr(value, "shape", ()) != ():
        return None
    try:
        return float(value)
    except OverflowError:  # a whole number beyond floating point
        return math.inf if value > 0 else -math.inf


def _range(low: float, high: float, above: bool) -> str:
    if math.isinf(high):
        return "" if math.isinf(low) else f"{'above' if above else 'at least'} {low:g}"
    return f"in {'(' if above else '['}{low:g}, {high:g}]"


def _shown(value: object) -> str:
    number = _number(value)
    return words_for(value) if number is None or (isinstance(value, int) and math.isinf(number)) else str(value)
