"""A network that is linear in the field: one gain for each wave, learned as a function of wave number, levels and condition."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from examples.fields.gaussian import cosines
from torch import Tensor, nn

from ctm.conditions import Condition
from ctm.networks import register
from ctm.networks.fields import Fields

__all__ = ["Waves"]


@register
class Waves(nn.Module):
    """F for fields (C, H, W): each cosine wave of x is multiplied by a matrix (C, C), which a perceptron makes of the wave
    number, t, s and the condition.

    The exact denoiser and the exact jump of Gaussian fields have this form, and those of no other fields. So what a model with
    this network gets wrong is training's doing, and not the network's. width: of the two hidden layers. s_embedding: CTM's s
    branch, which starts at zero. shape, num_classes, arrays: as of every network (docs/networks.md); labels are not taken."""

    waves: Tensor
    rows: Tensor
    columns: Tensor

    def __init__(
        self,
        shape: Sequence[int],
        num_classes: int = 0,
        *,
        width: int = 32,
        s_embedding: bool = True,
        arrays: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        super().__init__()
        if len(shape) != 3 or num_classes:
            raise ValueError(
                f"Waves takes fields (C, H, W) without labels, got {tuple(shape)} and {num_classes} classes"
            )
        self.channels, height, width_of_field = shape
        self.register_buffer("rows", cosines(height).float(), persistent=False)
        self.register_buffer("columns", cosines(width_of_field).float(), persistent=False)
        i, j = torch.arange(height) / height, torch.arange(width_of_field) / width_of_field
        square = math.pi**2 * (i[:, None] ** 2 + j**2)
        features = torch.stack([(0.01 + square).log(), square.sqrt()], dim=-1).reshape(-1, 2)
        self.register_buffer("waves", features, persistent=False)
        self.of_wave, self.of_t = nn.Linear(2, width), nn.Linear(1, width, bias=False)
        self.of_s = nn.Linear(1, width, bias=False) if s_embedding else None
        if self.of_s is not None:
            nn.init.zeros_(self.of_s.weight)
        self.conditions = Fields(arrays, shape, width)
        self.hidden, self.last = nn.Linear(width, width), nn.Linear(width, self.channels**2)

    @property
    def last_layer(self) -> nn.Module:
        return self.last

    def forward(self, x: Tensor, t: Tensor, s: Tensor | None = None, condition: Condition = None) -> Tensor:
        """x (B, C, H, W), levels t and s (B,) -> like x."""
        of_sample = self.of_t(t.log()[:, None] / 2)
        if self.of_s is not None and s is not None:
            of_sample = of_sample + self.of_s(s.log()[:, None] / 2)
        row = self.conditions.row(condition, len(x))
        of_sample = of_sample if row is None else of_sample + row
        hidden = nn.functional.silu(self.of_wave(self.waves) + of_sample[:, None])
        gains = self.last(nn.functional.silu(self.hidden(hidden))).unflatten(-1, (self.channels, self.channels))
        along = (self.rows @ x @ self.columns.T).flatten(2)
        along = torch.einsum("bkdc,bck->bdk", gains, along).reshape(x.shape)
        return self.rows.T @ along @ self.columns
