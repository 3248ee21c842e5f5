"""Comparison of several results, with the significance of each difference. Results with different protocols are refused."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ctm.evaluation.measure import METRICS
from ctm.evaluation.plans import title_of
from ctm.evaluation.protocol import differences
from ctm.foreign.text import JSONObject

__all__ = ["Comparison", "check_protocols", "compare", "significant"]

_LEVEL = 0.05
_DESCRIPTION = ("role", "sampler", "steps", "gamma")
_SETTINGS = ("form", "guidance", "rejection", "precision")  # that rows of one kind must share to be compared


@dataclass(frozen=True)
class Comparison:
    """One metric of one kind of row (its role, sampler, steps and γ), in the first result and in another. p: the probability
    of such a difference, or a larger one, between equals; None without error bars. verdict: better, worse, other or "" (not
    significant), of the second against the first."""

    row: JSONObject
    metric: str
    other: str
    first: float
    second: float
    p: float | None
    verdict: str = ""


def check_protocols(results: Sequence[tuple[str, JSONObject]]) -> None:
    """Raises ValueError, naming every difference, for a result that was not made like the first."""
    name, first = results[0]
    for other, result in results[1:]:
        found = differences(first["protocol"], result["protocol"])
        if found:
            raise ValueError(
                f"{name} and {other} cannot be compared: {'; '.join(found)}. Evaluate both with the same settings"
            )


def _p_value(a: JSONObject, b: JSONObject) -> float | None:
    """The two-sided p-value of two independent normal estimates: erfc(|a − b|/√(2(e_a² + e_b²)))."""
    errors = [number["error"] for number in (a, b)]
    if any(error is None or not math.isfinite(error) for error in errors):
        return None
    spread = math.hypot(*errors)
    difference = abs(a["value"] - b["value"])
    if spread == 0:
        return 0.0 if difference else 1.0
    return math.erfc(difference / (math.sqrt(2) * spread))


def significant(p_values: Sequence[float | None], level: float = _LEVEL) -> list[bool]:
    """Which of several p-values are significant together, by Holm's step-down rule. The probability that any of them is
    significant by accident is at most `level`."""
    order = sorted((p, index) for index, p in enumerate(p_values) if p is not None)
    chosen = [False] * len(p_values)
    for rank, (p, index) in enumerate(order):
        if p > level / (len(order) - rank):
            break
        chosen[index] = True
    return chosen


def _same_kind(a: Mapping[str, object], b: Mapping[str, object]) -> bool:
    names = (*_DESCRIPTION, "name") if a["role"] == "peer" else _DESCRIPTION
    return all(a.get(name) == b.get(name) for name in names)


def _comparable(a: JSONObject, b: JSONObject, metric: str) -> bool:
    """Whether two rows both have a metric, measured on the same thing. Distances to a teacher need the same teacher, bits
    per dimension the same images."""
    if not (metric in a["numbers"] and metric in b["numbers"]):
        return False
    if metric.endswith("_to_teacher"):
        return (a["teacher"] or {}).get("checksum") == (b["teacher"] or {}).get("checksum")
    return metric != "bits_per_dim" or a["likelihood_images"] == b["likelihood_images"]


def compare(results: Sequence[tuple[str, JSONObject]]) -> list[Comparison]:
    """Comparisons of every metric, for every row that the first result shares with another by role, sampler, steps and γ.

    Raises ValueError for fewer than two results, for different protocols, for shared rows with another form, guidance,
    rejection or precision, and if no row is shared."""
    if len(results) < 2:
        raise ValueError(f"a comparison needs at least two results, got {len(results)}")
    check_protocols(results)
    pairs = [
        (name, row, twin)
        for name, result in results[1:]
        for row in results[0][1]["rows"]
        for twin in result["rows"]
        if _same_kind(row, twin)
    ]
    for name, row, twin in pairs:
        others = differences(*({setting: each.get(setting) for setting in _SETTINGS} for each in (row, twin)))
        if others:
            raise ValueError(
                f"{results[0][0]} and {name} cannot be compared: {title_of(row)}: {'; '.join(others)}. Evaluate both with the "
                "same settings"
            )
    found = [
        Comparison(
            row, metric, _named(name, row, twin), row["numbers"][metric]["value"], twin["numbers"][metric]["value"], p
        )
        for name, row, twin in pairs
        for metric in METRICS
        if _comparable(row, twin, metric)
        for p in [_p_value(row["numbers"][metric], twin["numbers"][metric])]
    ]
    if not found:
        raise ValueError("the results have no row in common: evaluate the same --steps, --gamma and --sampler")
    flags = significant([each.p for each in found])
    return [_judged(each, flag) for each, flag in zip(found, flags, strict=True)]


def _named(name: str, row: JSONObject, twin: JSONObject) -> str:
    """The other result's name, and its grid if it is another grid."""
    grids = [each.get("grid") or {} for each in (row, twin)]
    if grids[0] == grids[1]:
        return name
    kinds = [grid.get("kind") for grid in grids]
    return f"{name} ({kinds[1]} grid)" if kinds[0] != kinds[1] else f"{name} (another {kinds[1]} grid)"


def _judged(each: Comparison, flag: bool) -> Comparison:
    direction = METRICS[each.metric].better
    change = (each.second - each.first) * direction
    verdict = "other" if direction == 0 else "better" if change > 0 else "worse"
    return Comparison(each.row, each.metric, each.other, each.first, each.second, each.p, verdict if flag else "")
