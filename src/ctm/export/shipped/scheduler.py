"""γ-sampling of a Consistency Trajectory Model (arXiv 2310.02279) as a diffusers scheduler, in flow matching's coordinates.

jump from σ_i to t' = max(√(1 − γ²)·σ_{i+1}, σ_min);   then add noise up to σ_{i+1};   none after the last jump
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers import ConfigMixin, SchedulerMixin
from diffusers.configuration_utils import register_to_config
from diffusers.utils import BaseOutput


@dataclass
class CTMSchedulerOutput(BaseOutput):
    """prev_sample: z at the next level, like the sample."""

    prev_sample: torch.Tensor


class CTMScheduler(SchedulerMixin, ConfigMixin):
    """Steps between the levels of a Karras grid, or of levels that are given. `timesteps` are 1000·τ of the levels that jumps
    start from, `r_timesteps` 1000·r of those they end at; τ = σ/(1 + σ), and r = 0 is the image. gamma 0: deterministic; 1: the
    multistep sampling of consistency models."""

    order = 1

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
        rho: float = 7.0,
        gamma: float = 0.0,
        grids: dict | None = None,
    ) -> None:
        self.init_noise_sigma = sigma_max / (1 + sigma_max)  # z = τ_max·ε
        self.set_timesteps(1)

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: torch.device | str | None = None,
        sigmas: list[float] | None = None,
        gamma: float | None = None,
    ) -> None:
        """sigmas: N levels of noise, falling, from which jumps start; the last jump ends at σ_min, which may stand after them, or
        be left out. None: the levels that the model keeps for this number of steps, else Karras'. num_inference_steps: N, None
        where sigmas are given. Raises ValueError for other levels, and where the two are another number of jumps."""
        config = self.config
        self.gamma = config.gamma if gamma is None else gamma
        if not 0 <= self.gamma <= 1:
            raise ValueError(f"gamma must be in [0, 1], got {self.gamma}")
        kept = (config.grids or {}).get(str(num_inference_steps))
        if sigmas is None and kept is not None and gamma in (None, kept["gamma"]):
            sigmas, self.gamma = list(kept["levels"]), kept["gamma"]
        if sigmas is not None:
            levels = torch.tensor(sigmas, dtype=torch.float64)
        elif num_inference_steps is None or num_inference_steps < 1:
            raise ValueError(f"num_inference_steps must be at least 1, got {num_inference_steps}")
        else:
            xi = torch.linspace(0, 1, num_inference_steps + 1, dtype=torch.float64)
            high, low = config.sigma_max ** (1 / config.rho), config.sigma_min ** (1 / config.rho)
            levels = (high + xi * (low - high)) ** config.rho
        if sigmas is None or (len(levels) > 1 and abs(levels[-1] / config.sigma_min - 1) <= 1e-6):
            levels = levels[:-1]
        if not bool((levels[:-1] > levels[1:]).all()) or not bool((levels > config.sigma_min).all()):
            raise ValueError(f"sigmas must fall and stay above {config.sigma_min}, got {levels.tolist()}")
        if num_inference_steps not in (None, len(levels)):
            raise ValueError(
                f"sigmas are {len(levels)} jumps, the last of which ends at {config.sigma_min}, and num_inference_steps is "
                f"{num_inference_steps}: leave one of the two out"
            )
        stops = ((1 - self.gamma**2) ** 0.5 * levels[1:]).clamp(min=config.sigma_min)
        self._fresh = [*(levels[1:] ** 2 - stops**2).clamp(min=0).sqrt().tolist(), 0.0]
        self._levels = [*levels.tolist(), 0.0]
        self._stops = [*stops.tolist(), 0.0]
        scale = config.num_train_timesteps
        place = torch.device("cpu" if device is None else device)
        kind = torch.float32 if place.type == "mps" else torch.float64
        ends = torch.tensor(self._stops, dtype=torch.float64)
        self.timesteps = (scale * levels / (1 + levels)).to(place, kind)
        self.r_timesteps = (scale * ends / (1 + ends)).to(place, kind)
        self.num_inference_steps, self.step_index = len(self.timesteps), 0

    def scale_model_input(self, sample: torch.Tensor, timestep: object = None) -> torch.Tensor:
        """The sample as it is."""
        return sample

    def step(
        self,
        model_output: torch.Tensor,
        timestep: float | torch.Tensor,
        sample: torch.Tensor,
        noise: torch.Tensor | None = None,
        generator: torch.Generator | None = None,
        return_dict: bool = True,
    ) -> CTMSchedulerOutput | tuple[torch.Tensor]:
        """The jump that the mean velocity stands for, then fresh noise up to the next level. noise: standard normal like sample,
        drawn where it is None and γ > 0."""
        i = self.step_index
        level, stop, above, fresh = self._levels[i], self._stops[i], self._levels[i + 1], self._fresh[i]
        gap = level / (1 + level) - stop / (1 + stop)
        z = sample - gap * model_output
        if fresh > 0:
            if noise is None:
                place = "cpu" if generator is None else generator.device
                noise = torch.randn(sample.shape, generator=generator, device=place).to(sample)
            z = (z * (1 + stop) + fresh * noise) / (1 + above)
        self.step_index += 1
        return CTMSchedulerOutput(prev_sample=z) if return_dict else (z,)
