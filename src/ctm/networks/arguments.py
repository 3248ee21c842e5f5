"""The arguments of our networks as a file gives them: kinds and ranges, checked before anything is built."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args, get_origin, get_type_hints

from torch import nn

from ctm.arguments import whole_number
from ctm.conditioner import Arrays
from ctm.foreign.text import plain, with_article

__all__ = ["MOST_NUMBERS", "check_arguments", "check_shape", "fits_settings"]

MOST_NUMBERS = 1 << 26  # of one sample: 8192 × 8192 grey pixels
_MOST_SIDE = 1 << 20
_MOST = {  # of other whole numbers: 65,536, more than any network's width
    "blocks": 1024,
    "num_classes": 1 << 22,
    "null_class": 1 << 22,
}
_MOST_ENTRIES = 64
_FROM_ZERO = ("num_classes", "null_class", "augment_dim", "blocks")


def check_shape(shape: object, name: str = "shape") -> tuple[int, ...]:
    """The shape of one sample as whole numbers. Raises ValueError for none, for sides below 1, and for more than 2^26 numbers."""
    sides = tuple(shape) if isinstance(shape, Sequence) and not isinstance(shape, str) else ()
    whole = [number for side in sides if (number := whole_number(side)) is not None]
    if not 0 < len(sides) <= 8 or len(whole) < len(sides) or not all(1 <= side <= _MOST_SIDE for side in whole):
        raise ValueError(
            f"{name} must be a list of whole numbers of at least 1, such as [3, 32, 32], got {_shown(shape)}"
        )
    if math.prod(whole) > MOST_NUMBERS:
        raise ValueError(f"{name} must have at most {MOST_NUMBERS} numbers (2^26), got {_shown(shape)}")
    return tuple(whole)


def check_arguments(network: type[nn.Module], arguments: Mapping[str, object]) -> None:
    """Raises ValueError, naming the argument, where one of our networks does not take it, or it has another kind or is out of
    range: whole numbers are no booleans, and finite; lists have at most 64 entries."""
    hints = get_type_hints(network.__init__)
    known = inspect.signature(network).parameters
    unknown = [name for name in arguments if name not in known]
    if unknown:
        raise ValueError(
            f"{network.__name__} does not take these init_args: {', '.join(map(plain, unknown[:4]))}; "
            f"it takes {', '.join(known)}"
        )
    absent = [name for name, value in known.items() if name not in arguments and value.default is value.empty]
    if absent:
        raise ValueError(f"{network.__name__} does not take these init_args: {', '.join(absent)} is missing")
    for name, value in arguments.items():
        if name == "shape":
            check_shape(value, f"{network.__name__}'s shape")
        elif not _fits(name, value, hints[name]):
            raise ValueError(f"{network.__name__}'s {name} must be {_range(name, hints[name])}, got {_shown(value)}")


def _fits(name: str, value: object, hint: object) -> bool:
    if name == "arrays":
        return _fits_arrays(value)
    if get_origin(hint) is Mapping:
        return fits_settings(value)
    if get_origin(hint) is Literal:
        return isinstance(value, str) and value in get_args(hint)
    if get_origin(hint) is Sequence:
        entries = value if isinstance(value, list | tuple) else ()
        enough = bool(entries) or (value in ([], ()) and name == "attention")
        return (
            enough and len(entries) <= _MOST_ENTRIES and all(_fits(name, entry, get_args(hint)[0]) for entry in entries)
        )
    if get_args(hint):  # int | None
        return any(value is None if kind is type(None) else _fits(name, value, kind) for kind in get_args(hint))
    if hint is bool:
        return isinstance(value, bool)
    if isinstance(value, bool) or not isinstance(value, int if hint is int else int | float):
        return False
    if hint is float:
        return abs(value) <= 1e6 and (name != "dropout" or 0 <= value < 1)
    return (0 if name in _FROM_ZERO else 1) <= value <= _MOST.get(name, 1 << 16)


def _fits_arrays(value: Any) -> bool:
    """Whether the fields of a condition are ones that a model can have: `ctm.conditioner.Arrays` says which."""
    try:
        Arrays(value or {})
    except (ValueError, AttributeError, TypeError):
        return False
    return len(value or {}) <= _MOST_ENTRIES


def fits_settings(value: Any, depth: int = 0) -> bool:
    """Whether these are settings of a module of another library: names to numbers of at most 65,536 (floats: 1e6), short words,
    booleans, none, and lists of at most 64 of these, two deep."""
    if depth == 0:
        named = (
            isinstance(value, Mapping) and len(value) <= 4 * _MOST_ENTRIES and all(isinstance(n, str) for n in value)
        )
        return named and all(fits_settings(entry, 1) for entry in value.values())
    if isinstance(value, list | tuple):
        return depth < 4 and len(value) <= _MOST_ENTRIES and all(fits_settings(entry, depth + 1) for entry in value)
    if isinstance(value, str):
        return re.fullmatch(r"[\w.+-]{0,64}", value, re.ASCII) is not None
    if value is None or isinstance(value, bool):
        return True
    return isinstance(value, int | float) and abs(value) <= (1 << 16 if isinstance(value, int) else 1e6)


def _range(name: str, hint: Any) -> str:
    if name == "arrays":
        return "a mapping of field names to shapes, such as {observation: [20]}"
    if get_origin(hint) is Mapping:
        return f"a mapping of names to whole numbers of at most {1 << 16}, numbers, words and lists of at most {_MOST_ENTRIES}"
    if get_origin(hint) is Literal:
        return " or ".join(repr(choice) for choice in get_args(hint))
    if get_origin(hint) is Sequence:
        return f"a list of at most {_MOST_ENTRIES} entries, each {_range(name, get_args(hint)[0])}"
    if get_args(hint):
        return " or ".join("null" if kind is type(None) else _range(name, kind) for kind in get_args(hint))
    if hint is bool:
        return "true or false"
    if hint is float:
        return "a number from 0 to below 1" if name == "dropout" else "a finite number of at most 1e6"
    return f"a whole number from {0 if name in _FROM_ZERO else 1} to {_MOST.get(name, 1 << 16)}"


def _shown(value: object) -> str:
    """A value of a file in a message: its beginning."""
    entries = list(value[:8]) if isinstance(value, list | tuple) else [value]
    texts = [
        plain(str(entry), 20) if isinstance(entry, str | int | float) else with_article(type(entry).__name__)
        for entry in entries
    ]
    return f"[{', '.join(texts)}{', …' if len(value) > 8 else ''}]" if isinstance(value, list | tuple) else texts[0]
