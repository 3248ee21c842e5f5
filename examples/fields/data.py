"""Write fields drawn from the closed form, with the length scale and the variance of each: the data of the recipes here.

Usage: python -m examples.fields.data runs/fields/train.npz --num 8192 --seed 0
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from examples.fields.gaussian import GaussianFields
from torch import Tensor

__all__ = ["LENGTH_SCALES", "VARIANCES", "conditions", "write"]

LENGTH_SCALES = (1.5, 6.0)  # cells
VARIANCES = (0.5, 2.0)


def conditions(num: int, seed: int = 0) -> dict[str, Tensor]:
    """length_scale and variance (num,), float32, uniform in their logarithms; the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    drawn = {}
    for name, (low, high) in (("length_scale", LENGTH_SCALES), ("variance", VARIANCES)):
        share = torch.rand(num, generator=generator)
        drawn[name] = low * (high / low) ** share
    return drawn


def write(out: Path, num: int, seed: int = 0) -> tuple[int, ...]:
    """Write an .npz with `num` fields and the condition of each, as `ctm train` reads it; returns the shape of one."""
    condition = conditions(num, seed)
    data = GaussianFields().sample(condition, seed).float().numpy()
    out.parent.mkdir(parents=True, exist_ok=True)
    np.savez(out, data=data, **{name: values.numpy() for name, values in condition.items()})
    return data.shape[1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--num", type=int, default=8192)
    parser.add_argument("--seed", type=int, default=0)
    settings = parser.parse_args()
    print(f"{settings.out}: {settings.num} fields of shape {write(settings.out, settings.num, settings.seed)}")


if __name__ == "__main__":
    main()
