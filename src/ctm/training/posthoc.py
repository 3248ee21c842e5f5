"""Averages of weights made after a run: any length from a few stored ones (arXiv 2312.02696, section 3.2 and appendix C)."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ctm.training.ema import power_exponent

__all__ = ["Profile", "blended", "posthoc_weights", "profile_miss", "profile_of"]

_NAMED = re.compile(r"-(\d{1,15})-(\d\.\d{1,6})$")
_GIVEN = re.compile(r"(.+)@(\d{1,15}),(\d\.\d{1,6})")


@dataclass(frozen=True)
class Profile:
    """A power-function average at a time of a run: the weights at time τ in [0, time] count as τ^γ, γ = `power_exponent`
    (sigma_rel). time: in any unit, the same for all averages of a run: steps, or images.

    Raises ValueError for a time that is not above 0, and for sigma_rel outside (0, 0.288]."""

    time: float
    sigma_rel: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.time) and self.time > 0):
            raise ValueError(f"the time of an average must be above 0, got {self.time}")
        power_exponent(self.sigma_rel)

    @property
    def exponent(self) -> float:
        return power_exponent(self.sigma_rel)

    def product(self, other: Profile) -> float:
        """∫ p·q dτ of two profiles p(τ) = (γ+1)·τ^γ/T^(γ+1) on [0, T] (equation 151): with T ≤ U,
        (γ+1)(δ+1)·(T/U)^δ / ((γ+δ+1)·U)."""
        early, late = sorted((self, other), key=lambda profile: profile.time)
        a, b = early.exponent, late.exponent
        return (a + 1) * (b + 1) * (early.time / late.time) ** b / ((a + b + 1) * late.time)


def posthoc_weights(stored: Sequence[Profile], wanted: Profile) -> list[float]:
    """The shares, of sum 1, with which the stored averages make the wanted one: least squares of the profiles (algorithm 3),
    A·x = b with A the products of the stored and b those with the wanted.

    Raises ValueError for a stored average that is there twice."""
    if len(set(stored)) != len(stored) or not stored:
        raise ValueError(
            f"each stored average must be another one, at another time or of another length: got {list(stored)}"
        )
    products = np.array([[a.product(b) for b in stored] for a in stored])
    scale = np.sqrt(np.diag(products))  # of length 1 each, so that times far apart do not spoil the solution
    right = np.array([a.product(wanted) for a in stored])
    found = np.linalg.solve(products / np.outer(scale, scale), right / scale) / scale
    return [float(share) for share in found / found.sum()]


def profile_miss(stored: Sequence[Profile], shares: Sequence[float], wanted: Profile) -> float:
    """‖p − Σ x·q‖/‖p‖ of the wanted profile p and the stored q: how far the made average is from the wanted, as a share."""
    left = wanted.product(wanted) - 2 * sum(x * q.product(wanted) for x, q in zip(shares, stored, strict=True))
    left += sum(
        x * y * p.product(q) for x, p in zip(shares, stored, strict=True) for y, q in zip(shares, stored, strict=True)
    )
    return math.sqrt(max(left, 0.0) / wanted.product(wanted))


def blended(states: Sequence[Mapping[str, Tensor]], shares: Sequence[float]) -> dict[str, Tensor]:
    """Σ share·tensor for each name, in float64 and then like the first. Raises ValueError where names, shapes or whole numbers
    differ: the states are not of one run."""
    first = states[0]
    shapes = [{name: value.shape for name, value in state.items()} for state in states]
    if any(shape != shapes[0] for shape in shapes):
        raise ValueError("the stored averages have other names or shapes than the first: they are not of one run")
    found = {}
    for name, value in first.items():
        if value.is_floating_point():
            parts = [share * state[name].double() for share, state in zip(shares, states, strict=True)]
            found[name] = torch.stack(parts).sum(0).to(value.dtype)
        elif any(not torch.equal(state[name], value) for state in states):
            raise ValueError(f"the stored averages differ in {name}, which is no average: they are not of one run")
        else:
            found[name] = value
    return found


def profile_of(text: str) -> tuple[str, Profile]:
    """A file and its average: of `FILE@TIME,SIGMA_REL`, or of a name that ends as EDM2's do, `-2147483-0.130.pkl`.

    Raises ValueError where neither says it."""
    given = _GIVEN.fullmatch(text)
    named = _NAMED.search(Path(text).stem)
    if given is not None:
        return given[1], Profile(float(given[2]), float(given[3]))
    if named is not None:
        return text, Profile(float(named[1]), float(named[2]))
    raise ValueError(
        f"{text} does not say which average it holds: give {text}@TIME,SIGMA_REL, such as @1073741,0.05, with the time of "
        "the run in any unit"
    )
