"""What the residual of Allen–Cahn pairs says of pairs that are right, and of pairs that are wrong in a known way.

Usage: python -m examples.fields.allen_cahn_residuals --num 128

Prints a table in Markdown: between its first row and its last one lie the residuals that a generator of pairs can have.
"""

from __future__ import annotations

import argparse

import torch
from examples.fields.allen_cahn import GAP, STEP, evolve, pairs, residual
from examples.fields.measure import table
from torch import Tensor

__all__ = ["AT", "known", "main", "mean_and_error"]

AT = (1.0, 1.6, 2.5)  # ε


def known(num: int, epsilon: float, seed: int = 21) -> dict[str, Tensor]:
    """Pairs of each kind for one ε, (num, 2, H, W), all with the same first states; num is at least 2."""
    every = torch.full((num,), epsilon)
    solved = pairs(every, torch.Generator().manual_seed(seed))
    first = solved[:, 0]
    noise = torch.randn(first.shape, generator=torch.Generator().manual_seed(seed + 1))
    seconds = {
        f"solver, steps of {STEP:g}": solved[:, 1],
        f"solver, steps of {STEP / 2:g}": evolve(first, every, GAP, STEP / 2),
        "ε a tenth too large": evolve(first, 1.1 * every, GAP),
        "noise of 0.1 on the second state": solved[:, 1] + 0.1 * noise,
        "noise of 0.1 on the first state": solved[:, 1],
        "the first state twice": first,
        "second states shuffled": solved[:, 1].roll(1, 0),
    }
    made = {name: torch.stack([first, second], dim=1) for name, second in seconds.items()}
    made["noise of 0.1 on the first state"][:, 0] += 0.1 * noise
    return made


def mean_and_error(values: Tensor) -> str:
    """The mean and its standard error, in three decimals, or two digits where it is below 0.001."""
    pair = float(values.mean()), float(values.std() / len(values) ** 0.5)
    return " ± ".join(f"{number:.{3 if pair[0] >= 1e-3 else 6}f}" for number in pair)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num", type=int, default=128, help="pairs of each kind and ε, at least 2")
    settings = parser.parse_args()
    if settings.num < 2:
        parser.error(f"--num must be at least 2, got {settings.num}: a standard error needs two pairs")
    found = [
        {name: residual(made, torch.full((settings.num,), at)) for name, made in known(settings.num, at).items()}
        for at in AT
    ]
    rows = [[name, *(mean_and_error(residuals[name]) for residuals in found)] for name in found[0]]
    print(table(["residual", *(f"ε = {at:g}" for at in AT)], rows))


if __name__ == "__main__":
    main()
