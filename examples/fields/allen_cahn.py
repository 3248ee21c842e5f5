"""Two-phase fields that follow the Allen–Cahn equation: a solver of second order, and pairs of states of its solutions.

Usage: python -m examples.fields.allen_cahn runs/fields/allen-cahn.npz --num 8192 --seed 0

    u_t = ε²∇²u + u − u³      on 24×40 cells of side 1, periodic      (Allen and Cahn 1979)

u goes to +1 or −1, the two phases. The walls between them are tanh(distance/(ε√2)) and move towards their centre of curvature.
The equation goes down the energy E(u) = mean over the cells of ε²|∇u|²/2 + (1 − u²)²/4.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

__all__ = ["SHAPE", "SIDES", "defect", "energy", "epsilons", "evolve", "pairs", "residual", "squared_waves", "write"]

SIDES = (24, 40)
SHAPE = (2, *SIDES)  # u at time START, and u a GAP later
EPSILONS = (1.0, 2.5)  # cells
START, GAP = 2.0, 2.0
STEP = 0.1  # of the solver


def squared_waves(sides: tuple[int, ...], half: bool = False) -> Tensor:
    """|k|² of the waves of torch.fft.fft2, float64 (H, W); half: of torch.fft.rfft2, (H, W//2 + 1)."""
    rows = torch.fft.fftfreq(sides[0], dtype=torch.float64)
    columns = (torch.fft.rfftfreq if half else torch.fft.fftfreq)(sides[1], dtype=torch.float64)
    return 4 * math.pi**2 * (rows[:, None] ** 2 + columns**2)


def energy(u: Tensor, epsilon: Tensor) -> Tensor:
    """E of fields u (B, H, W), epsilon (B,): float64 (B,). The gradient is that of the trigonometric interpolant."""
    u = u.double()
    slope = torch.fft.fft2(u, norm="ortho").abs().square() * squared_waves(u.shape[-2:])
    return (epsilon.double()[:, None, None] ** 2 * slope / 2 + (1 - u.square()).square() / 4).mean(dim=(1, 2))


def react(u: Tensor, time: float) -> Tensor:
    """The solution of u' = u − u³ after this time: u·eᵗ/√(1 + u²(e²ᵗ − 1))."""
    return u * math.exp(time) / (1 + u.square() * math.expm1(2 * time)).sqrt()


def evolve(u: Tensor, epsilon: Tensor, time: float, step: float = STEP) -> Tensor:
    """u (B, H, W) after this time, in its dtype, by Strang's splitting (1968): half a step of reaction, a step of diffusion, and
    half a step of reaction. Each part is exact, and the error of the whole falls with the square of the step. epsilon (B,), in
    cells. All steps are equal, none is longer than `step`. Raises ValueError for a time below 0, and for a step of 0 or less."""
    if time < 0 or step <= 0:
        raise ValueError(f"the time must be at least 0 and the step above 0, got {time} and {step}")
    count = math.ceil(time / step - 1e-9)
    if count == 0:
        return u
    taken = time / count
    decay = (-(epsilon.double()[:, None, None] ** 2) * squared_waves(u.shape[-2:], half=True) * taken).exp().to(u.dtype)
    u = react(u, taken / 2)
    for index in range(count):
        u = torch.fft.irfft2(torch.fft.rfft2(u) * decay, s=u.shape[-2:])
        u = react(u, taken if index < count - 1 else taken / 2)
    return u


def initial(num: int, generator: torch.Generator, width: float = 2.0, deviation: float = 0.5) -> Tensor:
    """Smooth random fields (num, H, W), float64: white noise under a Gaussian of this width in cells, times what gives each
    cell this deviation."""
    white = torch.randn(num, *SIDES, dtype=torch.float64, generator=generator)
    gains = (-squared_waves(SIDES) * width**2 / 2).exp()
    gains = gains * deviation / gains.square().mean().sqrt()
    return torch.fft.ifft2(torch.fft.fft2(white) * gains).real


def epsilons(num: int, generator: torch.Generator) -> Tensor:
    """ε (num,), float32, uniform in its logarithm."""
    low, high = EPSILONS
    return low * (high / low) ** torch.rand(num, generator=generator)


def pairs(epsilon: Tensor, generator: torch.Generator) -> Tensor:
    """A pair of states for each ε (B,): u at times START and START + GAP of one solution, float32 (B, 2, H, W)."""
    first = evolve(initial(len(epsilon), generator).float(), epsilon, START)
    return torch.stack([first, evolve(first, epsilon, GAP)], dim=1)


def defect(pair: Tensor, epsilon: Tensor, step: float = STEP / 4) -> Tensor:
    """By how much pairs (B, 2, H, W) miss the equation in each cell: u(t + GAP) minus what the solver makes of u(t) by small
    steps, float64 (B, H, W), in units of u, whose phases are ±1."""
    return pair[:, 1].double() - evolve(pair[:, 0].double(), epsilon, GAP, step)


def residual(pair: Tensor, epsilon: Tensor, step: float = STEP / 4) -> Tensor:
    """The root mean square of `defect` over the cells, float64 (B,). The solver's own pairs show the error of its step."""
    return defect(pair, epsilon, step).square().mean(dim=(1, 2)).sqrt()


def write(out: Path, num: int, seed: int = 0) -> tuple[int, ...]:
    """Write an .npz with `num` pairs and the ε of each, as `ctm train` reads it; returns the shape of one pair."""
    generator = torch.Generator().manual_seed(seed)
    epsilon = epsilons(num, generator)
    data = torch.cat([pairs(part, generator) for part in epsilon.split(256)]).numpy()
    out.parent.mkdir(parents=True, exist_ok=True)
    np.savez(out, data=data, epsilon=epsilon.numpy())
    return data.shape[1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--num", type=int, default=8192)
    parser.add_argument("--seed", type=int, default=0)
    settings = parser.parse_args()
    print(f"{settings.out}: {settings.num} pairs of shape {write(settings.out, settings.num, settings.seed)}")


if __name__ == "__main__":
    main()
