"""The noise levels that a discrete diffusion model was trained at, from its β schedule.

ᾱ_i = Π_{j ≤ i} (1 − β_j),     σ_i = √((1 − ᾱ_i)/ᾱ_i)             (DDPM, arXiv 2006.11239, eq. 4)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ctm.arguments import words_for

__all__ = ["SCHEDULES", "BetaSchedule"]

_MOST_LEVELS = 20_000
_MOST_BETA = 0.999
_CUT = math.sqrt(2.0**24 - 1)  # √(1/ᾱ − 1) at ᾱ = 2^−24


def _linear(low: float, high: float, count: int) -> Tensor:
    """β evenly from β_start to β_end (DDPM)."""
    return torch.linspace(low, high, count, dtype=torch.float32, device="cpu")


def _scaled_linear(low: float, high: float, count: int) -> Tensor:
    """√β evenly from √β_start to √β_end (latent diffusion, arXiv 2112.10752)."""
    return torch.linspace(low**0.5, high**0.5, count, dtype=torch.float32, device="cpu") ** 2


def _sigmoid(low: float, high: float, count: int) -> Tensor:
    """β_start + (β_end − β_start)·sigmoid of −6 … 6 (GeoDiff, arXiv 2203.02923)."""
    return torch.sigmoid(torch.linspace(-6, 6, count, dtype=torch.float32, device="cpu")) * (high - low) + low


def _cosine(share: float) -> float:
    """ᾱ = cos²((t + 0.008)/1.008·π/2) (arXiv 2102.09672, eq. 17)."""
    return math.cos((share + 0.008) / 1.008 * math.pi / 2) ** 2


def _exp(share: float) -> float:
    """ᾱ = e^(−12t)."""
    return math.exp(-12.0 * share)


def _laplace(share: float) -> float:
    """√ of a Laplace schedule's ᾱ (arXiv 2407.03297), as diffusers takes it for ᾱ."""
    half = -0.5 * math.copysign(1, 0.5 - share) * math.log(1 - 2 * abs(0.5 - share) + 1e-6)
    return math.sqrt(math.exp(half) / (1 + math.exp(half)))


def _from_alphas(curve: Callable[[float], float]) -> Callable[[float, float, int], Tensor]:
    """β_i = 1 − ᾱ(i+1)/ᾱ(i), at most 0.999 (arXiv 2102.09672); β_start and β_end count for nothing."""

    def betas(low: float, high: float, count: int) -> Tensor:
        values = [min(1 - curve((i + 1) / count) / curve(i / count), _MOST_BETA) for i in range(count)]
        return torch.tensor(values, dtype=torch.float32, device="cpu")

    return betas


SCHEDULES: Mapping[str, Callable[[float, float, int], Tensor]] = {
    "linear": _linear,
    "scaled_linear": _scaled_linear,
    "sigmoid": _sigmoid,
    "squaredcos_cap_v2": _from_alphas(_cosine),
    "exp": _from_alphas(_exp),
    "laplace": _from_alphas(_laplace),
}
"""The β schedules by their names in diffusers: (β_start, β_end, number of levels) -> β."""


@dataclass(frozen=True)
class BetaSchedule:
    """A table of noise levels σ_0 < σ_1 < …, one for each training timestep, by the settings that diffusers' schedulers have.

    num_train_timesteps: of the table, 2 to 20,000. beta_start, beta_end, beta_schedule: a name in `SCHEDULES`. trained_betas: the
    β themselves, in place of these. rescale_betas_zero_snr: whether the table was moved so that its last level has no signal
    (arXiv 2305.08891, algorithm 1). That level is σ = ∞ then, and stands in the table as `sigma_cut`.

    β and ᾱ are computed in float32, as diffusers does, so that the table is that of the training. Raises ValueError for settings
    of no such table."""

    num_train_timesteps: int = 1000
    beta_start: float = 0.0001
    beta_end: float = 0.02
    beta_schedule: str = "linear"
    trained_betas: tuple[float, ...] | None = None
    rescale_betas_zero_snr: bool = False
    _kept: dict[tuple[torch.device, torch.dtype], Tensor] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        count = self.num_train_timesteps
        if isinstance(count, bool) or not isinstance(count, int) or not 2 <= count <= _MOST_LEVELS:
            raise ValueError(
                f"num_train_timesteps is a whole number from 2 to {_MOST_LEVELS}, got {words_for(self.num_train_timesteps)}"
            )
        if not isinstance(self.beta_schedule, str) or self.beta_schedule not in SCHEDULES:
            raise ValueError(f"beta_schedule is one of {', '.join(SCHEDULES)}, got {words_for(self.beta_schedule)}")
        if not isinstance(self.rescale_betas_zero_snr, bool):
            raise ValueError(f"rescale_betas_zero_snr is true or false, got {words_for(self.rescale_betas_zero_snr)}")
        if not all(_is_beta(value) for value in (self.beta_start, self.beta_end)):
            raise ValueError(
                f"beta_start and beta_end are numbers above 0 and below 1, got {words_for((self.beta_start, self.beta_end))}"
            )
        given = self.trained_betas
        if given is not None:
            listed = isinstance(given, list | tuple) and all(_is_beta(value) or value == 1 for value in given)
            if not listed or len(given) != count:
                raise ValueError(
                    f"trained_betas are {count} numbers above 0 and at most 1, one for each level, got {words_for(given)}"
                )
            object.__setattr__(self, "trained_betas", tuple(float(value) for value in given))
        levels = self.sigmas
        if not all(low < high for low, high in pairwise(levels)):
            raise ValueError(
                "the noise levels of this β schedule do not rise from each to the next: it is none to train at"
            )

    @cached_property
    def alphas(self) -> Tensor:
        """ᾱ (num_train_timesteps,), float32 on the CPU, falling; the last is 0 where the last level has no signal."""
        with torch.inference_mode(False):
            if self.trained_betas is not None:
                betas = torch.tensor(self.trained_betas, dtype=torch.float32, device="cpu")
            else:
                make = SCHEDULES[self.beta_schedule]
                betas = make(self.beta_start, self.beta_end, self.num_train_timesteps)
            return torch.cumprod(1 - (_without_signal(betas) if self.rescale_betas_zero_snr else betas), dim=0)

    @property
    def ends_without_signal(self) -> bool:
        """Whether the last level is σ = ∞, which stands as `sigma_cut` in the table."""
        return float(self.alphas[-1]) == 0

    @property
    def sigma_cut(self) -> float:
        """What stands for σ = ∞: 4095.9999 (ᾱ = 2^−24, as in diffusers' own solvers), or twice the level before it if that is not
        below 4096."""
        before = float(self.alphas[-2].double())
        level = math.sqrt((1 - before) / before) if before > 0 else math.inf
        return _CUT if level < _CUT else 2 * level

    @cached_property
    def sigmas(self) -> tuple[float, ...]:
        """The levels σ_0, σ_1, …, rising."""
        alphas = self.alphas.double()
        found = ((1 - alphas) / alphas).sqrt().tolist()
        return (*found[:-1], self.sigma_cut) if self.ends_without_signal else tuple(found)

    def index(self, sigma: Tensor) -> Tensor:
        """The number of a level, linear in ln σ between two neighbours, 0 below the first and the last above the last.
        sigma of any shape -> like it. It is a whole number exactly where sigma is a level of the table, also in float32."""
        table = self._table(sigma.device, sigma.dtype)
        last = len(table) - 1
        below = ((sigma[..., None] >= table).sum(-1) - 1).clamp(0, last - 1)
        low, high = table[below], table[below + 1]
        share = torch.log1p((sigma - low) / low) / torch.log1p((high - low) / low)
        return (below.to(sigma.dtype) + share).clamp(0, last)

    def _table(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        """The levels on a device, sent there once."""
        kept = self._kept.get((device, dtype))
        if kept is not None:
            return kept
        with torch.inference_mode(False):
            table = torch.tensor(self.sigmas, dtype=dtype, device=device)
        if type(table) is Tensor:  # not what stands for a tensor while a graph is traced
            self._kept[device, dtype] = table
        return table

    def as_json(self) -> dict[str, Any]:
        """The settings as config.json keeps them: names to plain values."""
        own = {entry.name: getattr(self, entry.name) for entry in fields(self) if entry.init}
        return own | ({"trained_betas": list(self.trained_betas)} if self.trained_betas is not None else {})

    @staticmethod
    def from_json(settings: Any) -> BetaSchedule:
        """The table of settings as of `as_json`. Raises ValueError for anything else."""
        known = {entry.name for entry in fields(BetaSchedule) if entry.init}
        if not isinstance(settings, Mapping) or set(settings) - known:
            unknown = sorted(map(str, set(settings) - known)) if isinstance(settings, Mapping) else settings
            raise ValueError(
                f"the table of noise levels is a mapping with {', '.join(sorted(known))}, got {words_for(unknown)}"
            )
        return BetaSchedule(**settings)


def _is_beta(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1


def _without_signal(betas: Tensor) -> Tensor:
    """β moved so that ᾱ ends at 0 and begins where it did: √ᾱ is shifted and scaled (arXiv 2305.08891, algorithm 1)."""
    roots = torch.cumprod(1 - betas, dim=0).sqrt()
    first, last = roots[0].clone(), roots[-1].clone()
    roots -= last
    roots *= first / (first - last)
    alphas = roots**2
    return 1 - torch.cat([alphas[:1], alphas[1:] / alphas[:-1]])
