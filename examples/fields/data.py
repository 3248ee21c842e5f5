"""Write fields drawn from the closed form, with the length scale and the variance of each: the data of teacher.yaml and ctm.yaml.

Usage: python -m examples.fields.data runs/fields/train.npz --num 8192 --seed 0
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from examples.fields.gaussian import GaussianFields
from torch import Tensor

__all__ = ["LENGTH_SCALES", "VARIANCES", "conditions"]

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--num", type=int, default=8192)
    parser.add_argument("--seed", type=int, default=0)
    settings = parser.parse_args()
    condition = conditions(settings.num, settings.seed)
    data = GaussianFields().sample(condition, settings.seed).float().numpy()
    settings.out.parent.mkdir(parents=True, exist_ok=True)
    np.savez(settings.out, data=data, **{name: values.numpy() for name, values in condition.items()})
    print(f"{settings.out}: {len(data)} fields of shape {data.shape[1:]}")


if __name__ == "__main__":
    main()
