"""Screening: every picture goes through the filters before it leaves, an upload before it is used. In doubt the answer is no."""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np

from ctm.foreign.text import plain
from ctm.safety.filters import Filter
from ctm.safety.policy import Policy, Threshold
from ctm.safety.workers import Failed, Late, Worker

__all__ = ["Decision", "Metrics", "Screen", "Verdict"]

Decision = Literal["pass", "hold", "block"]
_RANK: dict[Decision, int] = {"pass": 0, "hold": 1, "block": 2}


class Metrics(Protocol):
    """Is told of each call of a filter. outcome: ran, failed (it threw), late (past its deadline) or invalid (no score, or one
    that is no number in [0, 1])."""

    def filtered(self, name: str, outcome: str, seconds: float) -> None: ...


@dataclass(frozen=True)
class Verdict:
    """What is to be done with one picture. scores: by filter and category. unseen: whether some filter of the policy did not
    judge it, because it is too small for the filter, or because the policy has no filter."""

    decision: Decision
    reason: str
    scores: dict[str, dict[str, float]] = field(default_factory=dict)
    unseen: bool = False


class _Fault(Exception):
    """A filter gave no scores. Its words are the reason to block."""

    def __init__(self, words: str, outcome: str) -> None:
        super().__init__(words)
        self.outcome = outcome


class Screen:
    """Judges pictures by the filters that the policy has thresholds for.

    filters: those that can run. counts: calls so far by (filter, outcome); metrics: is told of each. Raises ValueError where the
    policy has a threshold for a filter that is not there, or for a category that the filter does not know."""

    def __init__(self, policy: Policy, filters: Sequence[Filter], metrics: Metrics | None = None) -> None:
        there = {each.name: each for each in filters}
        for name, categories in policy.thresholds.items():
            if name not in there:
                raise ValueError(
                    f"the policy has thresholds for the filter {plain(name)!r}, which is not there (there: "
                    f"{', '.join(there) or 'none'}): take the thresholds out, or make the filter available"
                )
            unknown = set(categories) - set(there[name].categories)
            if unknown:
                raise ValueError(
                    f"the filter {name} knows {', '.join(there[name].categories)}, and the policy has a threshold for "
                    f"{plain(sorted(unknown)[0])!r}: correct the name"
                )
        self.policy = policy
        self.filters = [there[name] for name in policy.thresholds]
        self.counts: Counter[tuple[str, str]] = Counter()
        self._metrics = metrics
        self._lock = threading.Lock()
        self._workers = {each.name: Worker(each, f"filter-{each.name}") for each in self.filters}

    def images(self, images: Sequence[np.ndarray], upload: bool = False) -> list[Verdict]:
        """One verdict for each image, uint8 (H, W, 3). Never raises for a fault of a filter: that is a block. upload: whether the
        images came from a user, for the reason. Raises ValueError for other arrays."""
        for image in images:
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
                raise ValueError(f"a picture to screen is uint8 (H, W, 3), got {image.dtype} {image.shape}")
        found: list[list[Verdict]] = [[] for _ in images]
        scores: list[dict[str, dict[str, float]]] = [{} for _ in images]
        for each in self.filters:
            seen = [index for index, image in enumerate(images) if min(image.shape[:2]) >= each.limits.smallest]
            for index in set(range(len(images))) - set(seen):
                found[index].append(self._of_small(each))
            for start in range(0, len(seen), each.limits.batch):
                chunk = seen[start : start + each.limits.batch]
                for index, result in zip(chunk, self._scores(each, [images[i] for i in chunk]), strict=True):
                    if isinstance(result, _Fault):
                        found[index].append(Verdict("block", str(result)))
                    else:
                        scores[index][each.name] = result
                        found[index].append(self._judge(each.name, result))
        whose = "the upload: " if upload else ""
        return [self._together(*each, whose) for each in zip(found, scores, strict=True)]

    def _together(self, verdicts: list[Verdict], scores: dict[str, dict[str, float]], whose: str) -> Verdict:
        """The strictest of the filters' verdicts. Its reason names all that say as much."""
        if not verdicts:
            return Verdict("pass", f"{whose}passed unseen: the policy has no filter", scores, unseen=True)
        decision = max((each.decision for each in verdicts), key=_RANK.__getitem__)
        reasons = [each.reason for each in verdicts if each.decision == decision and each.reason]
        return Verdict(decision, whose + "; ".join(reasons), scores, any(each.unseen for each in verdicts))

    def _of_small(self, each: Filter) -> Verdict:
        decision: Decision = self.policy.small_images
        words = f"judges no picture under {each.limits.smallest} px"
        reason = f"passed unseen by {each.name}, which {words}" if decision == "pass" else f"{each.name} {words}"
        return Verdict(decision, reason, unseen=True)

    def _judge(self, name: str, scores: Mapping[str, float]) -> Verdict:
        worst = Verdict("pass", "")
        for category, threshold in self.policy.thresholds[name].items():
            decision = _decision(scores[category], threshold)
            if _RANK[decision] > _RANK[worst.decision]:
                limit = threshold.block if decision == "block" else threshold.hold
                worst = Verdict(decision, f"{name}: {category} {scores[category]:.3g}, from {limit:g} on: {decision}")
        return worst

    def _scores(self, each: Filter, images: list[np.ndarray]) -> list[dict[str, float] | _Fault]:
        """Scores of each image or why there are none. Where a call on several images throws, each is tried alone, so that one
        image fails for itself only."""
        result = self._call(each, images)
        if not isinstance(result, _Fault):
            return [*result]
        if len(images) > 1 and result.outcome == "failed":
            alone = [self._call(each, [image]) for image in images]
            return [one if isinstance(one, _Fault) else one[0] for one in alone]
        return [result] * len(images)

    def _call(self, each: Filter, images: list[np.ndarray]) -> list[dict[str, float] | _Fault] | _Fault:
        views = [image.view() for image in images]
        for view in views:
            view.flags.writeable = False
        begun = time.monotonic()
        outcome, results = "ran", None
        try:
            given = self._workers[each.name].call(views, self.policy.filter_deadline)
            results = [_checked(each, one) for one in _as_list(each, given, len(images))]
            if any(isinstance(one, _Fault) for one in results):
                outcome = "invalid"
            return results
        except Late:
            outcome = "late"
            return _Fault(f"{each.name} did not answer within {self.policy.filter_deadline:g} s", outcome)
        except _Fault as fault:
            outcome = fault.outcome
            return fault
        except Failed as failure:
            outcome = "failed"
            return _Fault(f"{each.name} failed ({plain(failure.kind)})", outcome)
        finally:
            self._count(each.name, outcome, time.monotonic() - begun)

    def _count(self, name: str, outcome: str, seconds: float) -> None:
        with self._lock:
            self.counts[name, outcome] += 1
        if self._metrics is not None:
            self._metrics.filtered(name, outcome, seconds)


def _decision(score: float, threshold: Threshold) -> Decision:
    if threshold.block is not None and score >= threshold.block:
        return "block"
    return "hold" if threshold.hold is not None and score >= threshold.hold else "pass"


def _as_list(each: Filter, given: Any, count: int) -> list[Any]:
    if not isinstance(given, list | tuple) or len(given) != count:
        raise _Fault(f"{each.name} gave no list of scores for {count} pictures", "invalid")
    return list(given)


def _checked(each: Filter, given: Any) -> dict[str, float] | _Fault:
    """The scores of one picture, if each category has a number in [0, 1]."""
    scores: dict[str, float] = {}
    for category in each.categories:
        try:
            score = float(given[category])
        except Exception:
            return _Fault(f"{each.name} gave no score for {category}", "invalid")
        if not math.isfinite(score) or not 0 <= score <= 1:
            return _Fault(f"{each.name} gave {score} for {category}, which is no score in [0, 1]", "invalid")
        scores[category] = score
    return scores
