"""Policies that make sequences of 16 actions: from a diffusion model or a CTM, and by regression for comparison."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from examples.robotics.maze import CHUNK, EXECUTED, LIMIT
from torch import Tensor, nn

import ctm
from ctm.noise import to_zero
from ctm.sampling import gamma as gamma_sampler
from ctm.sampling import heun
from ctm.scaling import restored

TEACHER_LEVELS = 18  # and a 0: Heun's method makes 35 evaluations
MOST_JUMPS = 8


@dataclass
class Generated:
    """Sequences from a model, by receding horizon: 8 of 16 actions are executed, then the next sequence is made.

    model: a teacher, or a CTM. jumps: of the CTM, at most 8; None samples the teacher's flow by Heun's method, in 35 evaluations.
    gamma: of γ-sampling. warm: the first sequence is made from pure noise. Later ones start from what is left of the last one,
    with noise of this level; None makes all of them from pure noise. grid: levels (jumps + 1,) in place of the Karras grid, for
    sequences that are made from pure noise. seed: with an episode's number it decides the noise of all its sequences, whatever
    the model, so that policies are compared in pairs."""

    model: nn.Module
    jumps: int | None = None
    gamma: float = 0.0
    warm: float | None = 2.0
    grid: Tensor | None = None
    seed: int = 0
    _last: Tensor = field(init=False)
    _noise: Tensor = field(init=False)
    _count: int = field(init=False)

    def start(self, episodes: np.ndarray) -> None:
        shape = (-(-LIMIT // EXECUTED), MOST_JUMPS, *self.model.shape)  # for each sequence: the start, then what γ adds
        drawn = [np.random.default_rng([2, self.seed, e]).standard_normal(shape, dtype=np.float32) for e in episodes]
        self._noise = torch.from_numpy(np.stack(drawn))
        self._last, self._count = torch.empty(len(episodes), *self.model.shape), 0

    @torch.no_grad()
    def act(self, rows: np.ndarray, observation: np.ndarray) -> np.ndarray:
        first, *added = self._noise[rows, self._count].unbind(1)
        level = self.model.sigma_max if self._count == 0 or self.warm is None else self.warm
        x = level * first
        if level == self.warm:
            left = self._last[rows, :, EXECUTED:]
            x = x + torch.cat([left, left[..., -1:].expand(-1, -1, EXECUTED)], dim=-1)
        sequence = self._sample(x, level, added, {"observation": torch.from_numpy(observation)})
        self._last[rows] = sequence
        self._count += 1
        return restored(self.model, sequence)[..., :EXECUTED].transpose(1, 2).clamp(-1, 1).numpy()

    def _sample(self, x: Tensor, level: float, added: list[Tensor], condition: dict[str, Tensor]) -> Tensor:
        """The sequence (R, 2, 16) at the lowest level, in the model's own scaling, from x at `level`."""
        low = self.model.sigma_min
        if self.jumps is None:
            return heun(self.model, x, to_zero(ctm.karras_grid(TEACHER_LEVELS - 1, low, level)), condition=condition)
        grid = ctm.karras_grid(self.jumps, low, level)
        if self.grid is not None and level == self.model.sigma_max:
            grid = self.grid
        turns = iter(added)
        return gamma_sampler(self.model, x, grid, gamma=self.gamma, condition=condition, noise=lambda _: next(turns))


class Regression(nn.Module):
    """Behaviour cloning by least squares: from an observation the mean of what the expert did there."""

    def __init__(self, width: int = 256, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.shape = (2, CHUNK)
        self.layers = nn.Sequential(
            nn.Linear(10, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 2 * CHUNK)
        )

    def fit(self, data: Path, steps: int = 3000, batch_size: int = 256) -> Regression:
        """Trained on the demonstrations: those that the other policies learn from."""
        with np.load(data) as held:
            observations, sequences = torch.from_numpy(held["observation"]), torch.from_numpy(held["data"])
        optimizer = torch.optim.Adam(self.parameters(), lr=1e-3)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, steps)
        for _ in range(steps):
            some = torch.randint(len(sequences), (batch_size,))
            loss = (self(observations[some]) - sequences[some]).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        return self

    def forward(self, observation: Tensor) -> Tensor:
        """observation (B, 10) -> actions (B, 2, 16)."""
        return self.layers(observation).reshape(-1, *self.shape)

    def start(self, episodes: np.ndarray) -> None:
        pass

    @torch.no_grad()
    def act(self, rows: np.ndarray, observation: np.ndarray) -> np.ndarray:
        return self(torch.from_numpy(observation))[..., :EXECUTED].transpose(1, 2).clamp(-1, 1).numpy()
