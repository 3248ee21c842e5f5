"""The form of a result.json, checked before it is compared. The file may come from another program or from an editor."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ctm.evaluation.measure import METRICS
from ctm.foreign.text import plain

__all__ = ["check_result"]

_LARGEST = 1e300


def check_result(result: object) -> None:
    """Raises ValueError, naming the entry, for a result that does not have the form `ctm evaluate` writes."""
    if not isinstance(result, Mapping) or not {"protocol", "rows"} <= result.keys():
        raise ValueError("it has no protocol and rows")
    if not isinstance(result["protocol"], Mapping):
        raise ValueError("its protocol is no mapping of names to values")
    rows, warnings = result["rows"], result.get("warnings", [])
    if not isinstance(rows, list):
        raise ValueError("its rows are no list")
    if not isinstance(warnings, list) or not all(isinstance(line, str) for line in warnings):
        raise ValueError("its warnings are no list of texts")
    for number, row in enumerate(rows):
        wrong = _wrong(row)
        if wrong is not None:
            raise ValueError(f"its row {number} {wrong}")


def _wrong(row: object) -> str | None:
    """What is wrong with a row, or None."""
    if not isinstance(row, Mapping):
        return "is no mapping of names to values"
    absent = [name for name in ("role", "sampler", "steps", "gamma", "numbers", "seconds_per_image") if name not in row]
    if absent:
        return f"has no {absent[0]}"
    if not isinstance(row["role"], str):
        return "has a role that is no text"
    for name in ("numbers", "grid", "teacher"):
        if not isinstance(row.get(name) or {}, Mapping) or (name == "numbers" and not isinstance(row[name], Mapping)):
            return f"has a {name} that is no mapping of names to values"
    made = {"evaluations", "guidance"} <= row.keys() and "kind" in (row.get("grid") or {})
    if row["role"] != "samples" and not made:
        return "does not say how its samples were made (evaluations, guidance, grid)"
    if any(not _number(row.get(name), or_none=True) for name in ("gamma", "guidance", "seconds_per_image")):
        return "has a gamma, guidance or seconds_per_image that is no number"
    return _wrong_numbers(row)


def _wrong_numbers(row: Mapping[str, Any]) -> str | None:
    for name, number in row["numbers"].items():
        whole = isinstance(number, Mapping) and set(number) == {"value", "error"}
        if not whole or not _number(number["value"]) or not _number(number["error"], or_none=True):
            return f"has a number {plain(name, 40)} that is no value with an error"
    if "bits_per_dim" in row["numbers"] and "likelihood_images" not in row:
        return "has bits_per_dim and no likelihood_images"
    if any(name.endswith("_to_teacher") for name in METRICS if name in row["numbers"]) and "teacher" not in row:
        return "has distances to a teacher and no teacher"
    return None


def _number(value: Any, *, or_none: bool = False) -> bool:
    if value is None:
        return or_none
    return type(value) in (int, float) and (
        abs(value) <= _LARGEST or (type(value) is float and not math.isfinite(value))
    )
