"""The sample grid of a training run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ctm.models import ConsistencyModel
from ctm.noise import karras_grid
from ctm.pictures import grid_picture, save_picture
from ctm.sampling import generate, heun

__all__ = ["save_sample_grid"]

_COLUMNS = 10


def save_sample_grid(model: Any, path: Path) -> None:
    """Ten samples a row from the same noise, one class each where there are classes: for a CTM a row each of 1, 2, 4 and 8
    jumps (of a consistency model with fresh noise between), for a diffusion model two rows of Heun with 18 levels.
    Nothing for data that is no picture."""
    if len(model.shape) != 3 or model.shape[0] not in (1, 3):
        return
    count = _COLUMNS if hasattr(model, "jump") else 2 * _COLUMNS
    labels = torch.arange(count) % model.num_classes if model.num_classes else None
    if hasattr(model, "jump"):
        gamma = 1.0 if isinstance(model, ConsistencyModel) else 0.0
        rows = [generate(model, count, steps=steps, gamma=gamma, labels=labels) for steps in (1, 2, 4, 8)]
    else:
        grid = torch.cat([karras_grid(17, model.sigma_min, model.sigma_max), torch.zeros(1)])
        rows = [generate(model, count, labels=labels, grid=grid, sampler=heun)]
    save_picture(grid_picture(torch.cat(rows), columns=_COLUMNS), path)
