"""What is wrong in a policy, as one sentence: where it stands, what came, what is allowed."""

from __future__ import annotations

import difflib
import types
from collections.abc import Sequence
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from ctm.foreign.text import plain

__all__ = ["sentence_about"]

_WANTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "string_type": "a text",
    "dict_type": "a mapping, name: value",
    "model_type": "a mapping, name: value",
    "string_too_short": "a text that is not empty",
    "string_too_long": "a shorter text",
    "invalid_key": "a name",
}
_BOUNDS = {
    "greater_than_equal": ("at least", "ge"),
    "less_than_equal": ("at most", "le"),
    "greater_than": ("more than", "gt"),
    "less_than": ("less than", "lt"),
}


def sentence_about(error: ValidationError, form: type[BaseModel]) -> str:
    """One sentence about the first mistake, and how many more there are."""
    mistakes = error.errors(include_url=False)
    first = mistakes[0]
    words = _words(first, form)
    more = len(mistakes) - 1
    return words if not more else f"{words} (and {more} more)"


def _words(mistake: Any, form: type[BaseModel]) -> str:
    place = [str(step) for step in mistake["loc"]]
    where = plain(".".join(place), 120)
    kind, value = mistake["type"], plain(repr(mistake.get("input")), 60)
    if kind == "extra_forbidden":
        return _unknown(place, form)
    if kind == "value_error":
        return f"{where or 'it'} {mistake['ctx']['error']}"
    if kind in _BOUNDS:
        words, name = _BOUNDS[kind]
        return f"{where} must be {words} {mistake['ctx'][name]:g}, got {value}"
    if kind == "literal_error":
        return f"{where} must be {mistake['ctx']['expected']}, got {value}"
    return f"{where} must be {_WANTED.get(kind, 'something else (' + mistake['msg'] + ')')}, got {value}"


def _unknown(place: Sequence[str], form: type[BaseModel]) -> str:
    """A setting that does not exist, with the nearest that does."""
    known = _names_at(place[:-1], form)
    near = difflib.get_close_matches(place[-1], known, 1, 0.5)
    meant = f"did you mean {near[0]}?" if near else f"it takes {', '.join(known)}"
    inside = f" of {'.'.join(place[:-1])}" if len(place) > 1 else ""
    return f"{plain(place[-1])!r} is no setting{plain(inside, 120) and inside}: {meant}"


def _names_at(place: Sequence[str], form: Any) -> list[str]:
    for step in place:
        if isinstance(form, type) and issubclass(form, BaseModel):
            form = form.model_fields[step].annotation
        else:
            form = get_args(form)[-1]  # of dict[str, X]: X
        if get_origin(form) is types.UnionType:
            form = next(each for each in get_args(form) if each is not type(None))
    return list(form.model_fields) if isinstance(form, type) and issubclass(form, BaseModel) else []
