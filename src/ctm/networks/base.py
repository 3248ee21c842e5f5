"""What the networks share: their recorded arguments, and the embeddings of noise levels and labels."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ctm.conditions import GUIDANCE, Condition, labels_of, presence
from ctm.parametrization import rescaled_time

__all__ = [
    "FourierFeatures",
    "GuidanceEmbedding",
    "LabelEmbedding",
    "LevelEmbedding",
    "Network",
    "add_rows",
    "add_s",
    "adm_features",
    "dhariwal_features",
    "one_hot_labels",
    "sine_cosine",
    "song_features",
]


class Network(nn.Module):
    """A module that remembers the arguments it was built with, so that a model holding it can write its config.json.

    Arguments must be of JSON's kinds (numbers, strings, booleans, lists, None). `last_layer` names the parameter whose
    gradient balances the losses (VQGAN's adaptive weight, arXiv 2012.09841).
    """

    init_args: dict[str, Any]
    checkpointing = False

    def checkpoint_gradients(self) -> None:
        """From now on, calls with gradient keep only the inputs of the network's blocks, and compute what is inside them again in
        the backward pass: the same gradients in less memory, for about one more forward pass. Raises ValueError for a network
        that is not made of such blocks."""
        raise ValueError(
            f"{type(self).__name__} has no blocks to be computed again in the backward pass: leave checkpoint_gradients out"
        )

    def _block(self, block: nn.Module, *inputs: Tensor | None) -> Tensor:
        """block(*inputs), computed again in the backward pass where `checkpoint_gradients` was asked for."""
        if not (self.checkpointing and torch.is_grad_enabled()):
            return block(*inputs)
        found: Tensor = checkpoint(block, *inputs, use_reentrant=False)
        return found

    @property
    def fields(self) -> dict[str, tuple[int, ...]]:
        """The fields of a condition that the network takes beside labels: names to shapes without B."""
        own = {name: tuple(shape) for name, shape in (self.init_args.get("arrays") or {}).items()}
        return own | ({GUIDANCE: ()} if self.init_args.get("guidance_embedding") else {})

    def __new__(cls, *args: Any, **kwargs: Any) -> Network:
        instance = super().__new__(cls)
        bound = inspect.signature(cls.__init__).bind_partial(instance, *args, **kwargs)
        given = dict(list(bound.arguments.items())[1:])
        instance.__dict__["init_args"] = {name: _as_json(value) for name, value in given.items()}
        return instance

    @property
    def last_layer(self) -> nn.Module:
        """The module whose output is F; its weight's gradient is what `balance` compares."""
        raise AttributeError(f"{type(self).__name__} does not name its last layer")


def _as_json(value: object) -> Any:
    if isinstance(value, Mapping):
        return {name: _as_json(entry) for name, entry in value.items()}
    return list(value) if isinstance(value, tuple) else value


def one_hot_labels(labels: Tensor | None, n: int, num_classes: int, like: Tensor) -> Tensor:
    """(n, num_classes) one-hot rows in like's dtype and device; label −1, or labels None, gives a zero row."""
    rows = torch.zeros(n, num_classes, dtype=like.dtype, device=like.device)
    if labels is None:
        return rows
    known = labels >= 0
    return rows.scatter_(1, labels.clamp(min=0)[:, None], known[:, None].to(like.dtype))


class GuidanceEmbedding(nn.Module):
    """A guidance scale to a row of `out` numbers, zero until it is trained.

    w (B,), any finite number, enters as [sin, cos] of w at `channels`/2 frequencies from 1 down to 1/10000, then two linear
    layers with SiLU between them, the second zero at first: a network copied from one without is that one for every w."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.channels = channels
        self.first = nn.Linear(channels, out)
        self.second = nn.Linear(out, out)
        self.make_zero()

    def make_zero(self) -> None:
        """The second layer at zero, as it starts."""
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(self.second.bias)

    def forward(self, condition: Condition, like: Tensor) -> Tensor:
        """The scale in a condition, 1 where it has none, in the precision of the levels `like` (B,) -> (B, out)."""
        scale = torch.ones_like(like)
        if isinstance(condition, Mapping) and GUIDANCE in condition:
            there = presence(condition, GUIDANCE, like.shape[0])
            scale = torch.where(there, condition[GUIDANCE].to(like), scale)
        features = sine_cosine(scale, self.channels).to(self.first.weight.dtype)
        return self.second(nn.functional.silu(self.first(features)))


def song_features(level: Tensor, channels: int) -> Tensor:
    """(B,) -> (B, channels): [sin, cos] of ¼·ln t at frequencies 10000^(−i/(half−1)), as EDM's DDPM++."""
    return sine_cosine(level.log() / 4, channels)


def sine_cosine(value: Tensor, channels: int) -> Tensor:
    """(B,) -> (B, channels): [sin, cos] of the value at frequencies 10000^(−i/(half−1))."""
    half = channels // 2
    exponent = torch.arange(half, dtype=value.dtype, device=value.device) / max(half - 1, 1)
    angle = value[:, None] * (1 / 10000) ** exponent
    return torch.cat([angle.sin(), angle.cos()], dim=1)


def dhariwal_features(level: Tensor, channels: int) -> Tensor:
    """(B,) -> (B, channels): [cos, sin] of ¼·ln t at frequencies 10000^(−i/half), as EDM's ADM network."""
    half = channels // 2
    exponent = torch.arange(half, dtype=level.dtype, device=level.device) / half
    angle = (level.log() / 4)[:, None] * (1 / 10000) ** exponent
    return torch.cat([angle.cos(), angle.sin()], dim=1)


def adm_features(level: Tensor, channels: int) -> Tensor:
    """(B,) -> (B, channels): [cos, sin] of 250·ln(t + 1e-44) at frequencies 10000^(−i/half), as consistency models."""
    half = channels // 2
    exponent = torch.arange(half, dtype=level.dtype, device=level.device) / half
    angle = rescaled_time(level)[:, None] * (-math.log(10000) * exponent).exp()
    return torch.cat([angle.cos(), angle.sin()], dim=1)


class FourierFeatures(nn.Module):
    """(B,) -> (B, channels): [sin, cos] of ¼·ln t at random frequencies 2π·N(0, 16²), drawn once, as EDM's NCSN++."""

    frequencies: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("frequencies", 16 * torch.randn(channels // 2))

    def forward(self, level: Tensor) -> Tensor:
        angle = (level.log() / 4)[:, None] * (2 * math.pi * self.frequencies.to(level.dtype))
        return torch.cat([angle.sin(), angle.cos()], dim=1)


class LevelEmbedding(nn.Module):
    """Features of a noise level to a vector: two linear layers, each followed by SiLU.

    The features come in the level's own precision (float32 at least). Rows of numbers made from labels are added to the
    features (`early`) or to the second layer's output (`late`), as the network's family has it.
    """

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.first = nn.Linear(channels, out)
        self.second = nn.Linear(out, out)

    def forward(self, features: Tensor, early: Tensor | None = None, late: Tensor | None = None) -> Tensor:
        """features (B, channels), early like them, late (B, out) -> (B, out)."""
        hidden = features.to(self.first.weight.dtype)
        hidden = self.second(nn.functional.silu(self.first(hidden if early is None else hidden + early)))
        return nn.functional.silu(hidden if late is None else hidden + late)


class LabelEmbedding(nn.Module):
    """Label to a row of `channels` numbers: a linear layer over one-hot rows, zero input for an unconditional sample.

    scaled: rows of √K·one-hot, as EDM's Song networks have them.
    """

    def __init__(self, num_classes: int, channels: int, *, scaled: bool = True, bias: bool = True) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.scale = math.sqrt(num_classes) if scaled else 1.0
        self.linear = nn.Linear(num_classes, channels, bias=bias)

    def forward(self, condition: Condition, n: int) -> Tensor:
        """The labels in a condition, int64 (n,) with −1 = unconditional, or none -> (n, channels)."""
        return self.linear(one_hot_labels(labels_of(condition), n, self.num_classes, self.linear.weight) * self.scale)


def add_rows(*rows: Tensor | None) -> Tensor | None:
    """The sum of those that are there, None where none is."""
    given = [row for row in rows if row is not None]
    return sum(given[1:], given[0]) if given else None


def add_s(from_t: Tensor, s_affine: nn.Module | None, s_vector: Tensor | None) -> Tensor:
    """The t part of a block's affine plus its s part, where the network has one and s was given."""
    return from_t if s_affine is None or s_vector is None else from_t + s_affine(s_vector)
