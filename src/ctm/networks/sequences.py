"""Sequences of a condition, such as the tokens of a text, for cross-attention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ctm.conditions import MASK, Condition, presence
from ctm.networks.fields import Shapes

__all__ = ["CrossAttention", "SequenceFields", "sequence_shapes", "split_heads"]


class SequenceFields(nn.Module):
    """The sequence fields (L, D) of a condition as one list of tokens of `width` numbers, with a mask of those that are there.

    The first token is learned and always there. Where a field is absent, or NAME_mask is False for a token, attention does not
    see its tokens; with no field there it sees the learned token alone. Each field has a linear layer and a learned
    row that says which field a token is of. shapes: names to (L, D)."""

    def __init__(self, shapes: Shapes, width: int) -> None:
        super().__init__()
        self.shapes = {name: (int(shape[0]), int(shape[1])) for name, shape in shapes.items()}
        self.layers = nn.ModuleDict({name: nn.Linear(size, width) for name, (_, size) in self.shapes.items()})
        self.always = nn.Parameter(0.02 * torch.randn(width))

    def forward(self, condition: Condition, n: int) -> tuple[Tensor, Tensor]:
        """The condition of n samples -> tokens (n, 1 + ΣL, width), and bool (n, 1 + ΣL), True where a token is there."""
        start = self.always.expand(n, 1, -1)
        tokens, seen = [start], [torch.ones(n, 1, dtype=torch.bool, device=start.device)]
        for name, (length, size) in self.shapes.items():
            there = presence(condition, name, n, start.device)[:, None].expand(n, length)
            if isinstance(condition, Mapping) and name in condition:
                there = there & condition[name + MASK] if name + MASK in condition else there
                value = condition[name].to(start.dtype)
            else:
                value = start.new_zeros(n, length, size)
            tokens.append(self.layers[name](torch.where(there[..., None], value, 0.0)))
            seen.append(there)
        return torch.cat(tokens, dim=1), torch.cat(seen, dim=1)


class CrossAttention(nn.Module):
    """Attention of a sample's tokens to those of its condition: softmax(QKᵀ/√d)·V over the tokens that are there, through a last
    layer that starts at zero."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor, tokens: Tensor, seen: Tensor) -> Tensor:
        """x (B, N, width), tokens (B, L, width), seen bool (B, L) -> like x."""
        query = split_heads(self.query(x), self.heads)
        key, value = (split_heads(part, self.heads) for part in self.key_value(tokens).chunk(2, dim=-1))
        mixed = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=seen[:, None, None, :])
        return self.out(mixed.transpose(1, 2).flatten(2))


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, N, width) -> (B, heads, N, width/heads)."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def sequence_shapes(shapes: Shapes, sample: Sequence[int]) -> dict[str, tuple[int, ...]]:
    """Those fields that are sequences: two sides (L, D), and not the sample's own last sides after the first."""
    found = {name: tuple(int(side) for side in shape) for name, shape in shapes.items()}
    return {name: shape for name, shape in found.items() if len(shape) == 2 and shape[1:] != tuple(sample[1:])}
