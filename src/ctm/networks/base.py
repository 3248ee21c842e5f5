"""What the networks share: their recorded arguments, and the embeddings of noise levels and labels."""

from __future__ import annotations

import inspect
import math
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["LevelEmbedding", "Network", "add_s", "one_hot_labels"]


class Network(nn.Module):
    """A module that remembers the arguments it was built with, so that a model holding it can write its config.json.

    Arguments must be of JSON's kinds (numbers, strings, booleans, lists, None). `last_layer` names the parameter whose
    gradient balances the losses (CTM paper, adaptive weights).
    """

    init_args: dict[str, Any]

    def __new__(cls, *args: Any, **kwargs: Any) -> Network:
        instance = super().__new__(cls)
        bound = inspect.signature(cls.__init__).bind_partial(instance, *args, **kwargs)
        given = dict(list(bound.arguments.items())[1:])
        instance.__dict__["init_args"] = {k: list(v) if isinstance(v, tuple) else v for k, v in given.items()}
        return instance

    @property
    def last_layer(self) -> nn.Module:
        """The module whose output is F; its weight's gradient is what `balance` compares."""
        raise AttributeError(f"{type(self).__name__} does not name its last layer")


def one_hot_labels(labels: Tensor | None, n: int, num_classes: int, like: Tensor) -> Tensor:
    """(n, num_classes) one-hot rows in like's dtype and device; label −1, or labels None, gives a zero row."""
    rows = torch.zeros(n, num_classes, dtype=like.dtype, device=like.device)
    if labels is None:
        return rows
    known = labels >= 0
    return rows.scatter_(1, labels.clamp(min=0)[:, None], known[:, None].to(like.dtype))


class LevelEmbedding(nn.Module):
    """Noise level and label to a vector, as EDM's DDPM++: [sin, cos] of ¼·ln t at frequencies 10000^(−i/(half−1)), the
    label's row added, then two linear layers, each followed by SiLU.

    The frequencies are computed in the level's own precision (float32 at least). `label` is a Linear over √K·one-hot that
    the t and the s embedding share.
    """

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.channels = channels
        self.first = nn.Linear(channels, out)
        self.second = nn.Linear(out, out)

    def forward(self, level: Tensor, label_row: Tensor | None) -> Tensor:
        half = self.channels // 2
        exponent = torch.arange(half, dtype=level.dtype, device=level.device) / max(half - 1, 1)
        angle = (level.log() / 4)[:, None] * (1 / 10000) ** exponent
        embedded = torch.cat([angle.sin(), angle.cos()], dim=1).to(self.first.weight.dtype)
        if label_row is not None:
            embedded = embedded + label_row
        return nn.functional.silu(self.second(nn.functional.silu(self.first(embedded))))


class LabelEmbedding(nn.Module):
    """Label to a row of `channels` numbers: a linear layer over √K·one-hot, zero input for an unconditional sample."""

    def __init__(self, num_classes: int, channels: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.linear = nn.Linear(num_classes, channels)

    def forward(self, labels: Tensor | None, n: int) -> Tensor:
        rows = one_hot_labels(labels, n, self.num_classes, self.linear.weight)
        return self.linear(rows * math.sqrt(self.num_classes))


def add_s(from_t: Tensor, s_affine: nn.Module | None, s_vector: Tensor | None) -> Tensor:
    """The t part of a block's affine plus its s part, where the network has one and s was given."""
    return from_t if s_affine is None or s_vector is None else from_t + s_affine(s_vector)
