"""What turns a network's output F into the denoiser D, and what the network is told of the noise level.

    D(x, σ) = c_skip(σ)·x + c_out(σ)·F(c_in(σ)·x, level(σ))             (EDM, arXiv 2206.00364, eq. 7)

x = x_0 + σ·ε in all of them. A network that was trained on another state, such as √ᾱ·x_0 + √(1−ᾱ)·ε, gets that state as c_in·x.

| trained to predict | c_in | c_skip | c_out | level |
|---|---|---|---|---|
| "edm", "cm", "no": ours | 1/√(σ²+σ_d²) | as of ctm.parametrization | | σ |
| EDM, ±F of eq. 7 | 1/√(σ²+σ_d²) | σ_d²/(σ²+σ_d²) | ±σσ_d/√(σ²+σ_d²) | ¼·ln σ |
| ε | 1/√(1+σ²) | 1 | −σ | index in a table of levels |
| v = √ᾱ·ε − √(1−ᾱ)·x_0 (arXiv 2202.00512) | 1/√(1+σ²) | 1/(1+σ²) | −σ/√(1+σ²) | the same |
| x_0 | 1/√(1+σ²) | 0 | 1 | the same |
| the flow ε − x_0 at τ = σ/(1+σ) (arXiv 2210.02747) | 1/(1+σ) | 1/(1+σ) | −σ/(1+σ) | τ·time_scale |
| ε and x_0/σ_d, two outputs turned into one: `NoiseAndSample` | 1/√(1+σ²) | σ_d²/(σ²+σ_d²) | −σσ_d/√(σ²+σ_d²) | as of ε |
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, get_args, runtime_checkable

import torch
from torch import Tensor

from ctm.arguments import words_for
from ctm.betas import BetaSchedule
from ctm.noise import match_dims
from ctm.parametrization import Inner, input_scaling, output_scalings

__all__ = [
    "EDM",
    "Flow",
    "NoiseAndSample",
    "Own",
    "Preconditioning",
    "Prediction",
    "VariancePreserving",
    "preconditioning_from",
]

Prediction = Literal["epsilon", "v", "sample"]
_MOST_SCALE = 1e6
_TWO = "epsilon and sample"


@runtime_checkable
class Preconditioning(Protocol):
    """The scalings around a network, and the level that it embeds."""

    def scalings(self, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(c_skip, c_out, c_in) at noise levels sigma > 0 of any shape, each like sigma."""
        ...

    def level(self, sigma: Tensor) -> Tensor:
        """What the network embeds at noise levels sigma, like sigma."""
        ...

    def as_json(self) -> str | dict[str, Any]:
        """The preconditioning as config.json keeps it under "inner"; `preconditioning_from` reads it."""
        ...


@dataclass(frozen=True)
class Own:
    """The scalings of our networks by name: "edm", "cm" or "no" (`ctm.parametrization`). They embed σ itself.

    Raises ValueError for another name."""

    inner: Inner
    sigma_data: float
    sigma_min: float

    def __post_init__(self) -> None:
        output_scalings(self.inner, torch.ones(1), self.sigma_data, self.sigma_min)

    def scalings(self, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """c_skip and c_out by the name, c_in = 1/√(σ² + σ_d²); shapes as of `Preconditioning`."""
        c_skip, c_out = output_scalings(self.inner, sigma, self.sigma_data, self.sigma_min)
        return c_skip, c_out, input_scaling(sigma, self.sigma_data)

    def level(self, sigma: Tensor) -> Tensor:
        """σ itself."""
        return sigma

    def as_json(self) -> str:
        """The name."""
        return self.inner


@dataclass(frozen=True)
class EDM:
    """EDM's scalings (arXiv 2206.00364, table 1) around a network that embeds ¼·ln σ, as EDM's own code and diffusers' EDM
    schedulers have it. sign: 1, or −1 for a network that predicts −F (diffusers' v_prediction). sigma_data: of these scalings.

    Raises ValueError for another sign and for sigma_data that is not above 0."""

    sigma_data: float
    sign: int = 1

    def __post_init__(self) -> None:
        _check_number("sigma_data", self.sigma_data)
        if isinstance(self.sign, bool) or self.sign not in (1, -1):
            raise ValueError(f"the sign of an EDM network is 1 or -1, got {words_for(self.sign)}")

    def scalings(self, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """EDM's, with c_out times the sign; shapes as of `Preconditioning`."""
        c_skip, c_out = output_scalings("edm", sigma, self.sigma_data, 0.0)
        return c_skip, self.sign * c_out, input_scaling(sigma, self.sigma_data)

    def level(self, sigma: Tensor) -> Tensor:
        """¼·ln σ."""
        return sigma.log() / 4

    def as_json(self) -> dict[str, Any]:
        """{"prediction": "edm", "sigma_data": …, "sign": …}"""
        return {"prediction": "edm", "sigma_data": self.sigma_data, "sign": self.sign}


@dataclass(frozen=True)
class VariancePreserving:
    """A network trained on √ᾱ·x_0 + √(1−ᾱ)·ε at the numbered levels of a table, to predict ε, v or x_0 ("sample").

    σ = √((1−ᾱ)/ᾱ). Between two levels of the table the network is asked at a fractional number, linear in ln σ. Below the
    first level and above the last it is asked at those."""

    prediction: Prediction
    schedule: BetaSchedule

    def __post_init__(self) -> None:
        if self.prediction not in get_args(Prediction):
            raise ValueError(
                f"a prediction is one of {', '.join(get_args(Prediction))}, got {words_for(self.prediction)}"
            )

    def scalings(self, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As in the table of `ctm.preconditioning`; shapes as of `Preconditioning`."""
        c_in = (1 + sigma**2).rsqrt()
        if self.prediction == "epsilon":
            return torch.ones_like(sigma), -sigma, c_in
        if self.prediction == "v":
            return c_in**2, -sigma * c_in, c_in
        return torch.zeros_like(sigma), torch.ones_like(sigma), c_in

    def level(self, sigma: Tensor) -> Tensor:
        """The number of the level in the table, fractional between two: exactly whole at each level of the table."""
        return self.schedule.index(sigma)

    def as_json(self) -> dict[str, Any]:
        """{"prediction": "epsilon" | "v" | "sample", "sigmas": settings of the table}"""
        return {"prediction": self.prediction, "sigmas": self.schedule.as_json()}


@dataclass(frozen=True)
class NoiseAndSample:
    """A network with two outputs, ε and x_0/σ_d, at the levels of a table. It is what a student of a network that predicts ε
    becomes, whose errors do not grow with the noise:

        D = w·(x − σ·ε) + (1 − w)·σ_d·F_0,   w = σ_d²/(σ² + σ_d²)

    An error of ε counts w·σ ≤ σ_d/2 in D, and one of F_0 at most σ_d. In EDM's form it is D = c_skip·x + c_out·F with
    F = cos θ·ε − sin θ·F_0, tan θ = σ/σ_d: v-prediction (arXiv 2202.00512) by two outputs. At low noise it is the ε-predicting
    network. sigma_data: σ_d. Raises ValueError where it is not above 0."""

    schedule: BetaSchedule
    sigma_data: float
    outputs: ClassVar[int] = 2

    def __post_init__(self) -> None:
        _check_number("sigma_data", self.sigma_data)

    def scalings(self, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As in the table of `ctm.preconditioning`, for the one F that `mixed` makes; shapes as of `Preconditioning`."""
        c_skip, c_out = output_scalings("edm", sigma, self.sigma_data, 0.0)
        return c_skip, -c_out, (1 + sigma**2).rsqrt()

    def level(self, sigma: Tensor) -> Tensor:
        """The number of the level in the table, as of `VariancePreserving`."""
        return self.schedule.index(sigma)

    def mixed(self, outputs: Tensor, sigma: Tensor) -> Tensor:
        """F = cos θ·ε − sin θ·F_0. outputs (B, 2·C, …): ε, then F_0; sigma (B,) -> (B, C, …)."""
        noise, sample = outputs.chunk(2, dim=1)
        total = (sigma**2 + self.sigma_data**2).rsqrt()
        return match_dims(self.sigma_data * total, noise) * noise - match_dims(sigma * total, sample) * sample

    def begins_as(self, other: object) -> bool:
        """Whether `other` is of the ε-predicting network on the same levels, whose weights can begin this one's."""
        return (
            isinstance(other, VariancePreserving) and other.prediction == "epsilon" and other.schedule == self.schedule
        )

    def as_json(self) -> dict[str, Any]:
        """{"prediction": "epsilon and sample", "sigmas": settings of the table, "sigma_data": …}"""
        return {"prediction": _TWO, "sigmas": self.schedule.as_json(), "sigma_data": self.sigma_data}


@dataclass(frozen=True)
class Flow:
    """A network trained on (1−τ)·x_0 + τ·ε to predict ε − x_0 (flow matching, arXiv 2210.02747; rectified flow, arXiv
    2209.03003), which embeds τ·time_scale. τ = σ/(1+σ). Raises ValueError for a time_scale that is not above 0."""

    time_scale: float = 1000.0

    def __post_init__(self) -> None:
        _check_number("time_scale", self.time_scale)

    def scalings(self, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As in the table of `ctm.preconditioning`; shapes as of `Preconditioning`."""
        c_in = 1 / (1 + sigma)
        return c_in, -sigma * c_in, c_in

    def level(self, sigma: Tensor) -> Tensor:
        """time_scale·σ/(1+σ)."""
        return self.time_scale * (sigma / (1 + sigma))

    def as_json(self) -> dict[str, Any]:
        """{"prediction": "flow", "time_scale": …}"""
        return {"prediction": "flow", "time_scale": self.time_scale}


def preconditioning_from(settings: Any, sigma_data: float, sigma_min: float) -> Preconditioning:
    """The preconditioning of a model with this sigma_data and sigma_min: "edm", "cm" or "no"; a `Preconditioning` as it is; or a
    mapping as of `as_json`. Raises ValueError, in a sentence, for anything else."""
    if isinstance(settings, str):
        return Own(settings, sigma_data, sigma_min)  # type: ignore[arg-type]  # refuses other names
    if isinstance(settings, Preconditioning):
        return settings
    prediction = settings.get("prediction") if isinstance(settings, Mapping) else None
    needed = {"edm": {"sigma_data", "sign"}, "flow": {"time_scale"}, _TWO: {"sigmas", "sigma_data"}}
    known = needed | {name: {"sigmas"} for name in get_args(Prediction)}
    if not isinstance(prediction, str) or prediction not in known:
        raise ValueError(
            'inner is "edm", "cm" or "no", or a mapping with a prediction, one of '
            f"{', '.join(known)}: got {words_for(settings if prediction is None else prediction)}"
        )
    assert isinstance(settings, Mapping)
    others = {name: value for name, value in settings.items() if name != "prediction"}
    if set(others) != known[prediction]:
        raise ValueError(
            f"inner with the prediction {prediction} has {', '.join(sorted(known[prediction]))} beside it, got "
            f"{words_for(list(others))}"
        )
    if prediction == "edm":
        return EDM(**others)
    if prediction == "flow":
        return Flow(**others)
    if prediction == _TWO:
        return NoiseAndSample(BetaSchedule.from_json(others["sigmas"]), others["sigma_data"])
    return VariancePreserving(prediction, BetaSchedule.from_json(others["sigmas"]))  # type: ignore[arg-type]


def _check_number(name: str, value: Any) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or not 0 < value <= _MOST_SCALE:
        raise ValueError(f"{name} is a number above 0 and at most {_MOST_SCALE:g}, got {words_for(value)}")
