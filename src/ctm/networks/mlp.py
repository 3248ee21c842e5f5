"""A residual perceptron for vectors and very small images."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

from ctm.conditions import Condition
from ctm.networks.base import add_s
from ctm.networks.fields import Shapes
from ctm.networks.vectors import VectorNetwork

__all__ = ["MLP"]


class MLP(VectorNetwork):
    """F for data of any shape, flattened: `blocks` residual blocks of norm, (scale, shift) from t, s and label, two layers.

    shape: of one sample, without batch. num_classes: 0 = no labels. width: of the hidden layers. embedding: size of the
    level embeddings. s_embedding: whether there is an s branch (CTM) or none (a diffusion model). guidance_embedding: whether the
    guidance scale is an input. dropout: inside blocks. arrays: the fields of a condition beside labels, as of
    `ctm.networks.fields.Fields`.
    The s branch's affines and the guidance's row start at zero, so that F depends on neither until it is trained: a student
    copied from a teacher starts as its teacher.
    """

    def __init__(
        self,
        shape: Sequence[int],
        num_classes: int = 0,
        *,
        width: int = 256,
        blocks: int = 4,
        embedding: int = 128,
        s_embedding: bool = True,
        guidance_embedding: bool = False,
        dropout: float = 0.0,
        arrays: Shapes | None = None,
    ) -> None:
        super().__init__()
        size = math.prod(shape)
        self._build_vectors(
            shape, num_classes, embedding, arrays, s_embedding=s_embedding, guidance_embedding=guidance_embedding
        )
        self.first = nn.Linear(size + self.conditions.channels * math.prod(shape[1:]), width)
        self.blocks = nn.ModuleList(_Block(width, embedding, s_embedding, dropout) for _ in range(blocks))
        self.norm = nn.LayerNorm(width)
        self.last = nn.Linear(width, size)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    @property
    def last_layer(self) -> nn.Module:
        return self.last

    def checkpoint_gradients(self) -> None:
        self.checkpointing = True

    def forward(self, x: Tensor, t: Tensor, s: Tensor | None = None, condition: Condition = None) -> Tensor:
        """x (B, *shape), levels t and s (B,), condition: of the B samples, or None -> like x. s is ignored
        without an s branch."""
        return self.last(self.norm(self._hidden(x, t, s, condition)[-1])).reshape(x.shape)

    def _hidden(self, x: Tensor, t: Tensor, s: Tensor | None, condition: Condition) -> list[Tensor]:
        """(B, width) before the blocks and after each."""
        t_vector, s_vector = self._vectors(t, s, condition)
        hidden = [self.first(self.conditions.beside(x, condition).flatten(1))]
        for block in self.blocks:
            hidden.append(self._block(block, hidden[-1], t_vector, s_vector))
        return hidden

    def encode(self, x: Tensor, t: Tensor, condition: Condition = None) -> list[Tensor]:
        """What each block gives, as maps of one pixel: x (B, *shape), already scaled by c_in, at levels t (B,), condition as in
        `forward` -> (B, width, 1, 1) each."""
        return [hidden[:, :, None, None] for hidden in self._hidden(x, t, None, condition)[1:]]


class _Block(nn.Module):
    def __init__(self, width: int, embedding: int, s_embedding: bool, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.t_affine = nn.Linear(embedding, 2 * width)
        self.s_affine = nn.Linear(embedding, 2 * width) if s_embedding else None
        self.rise = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)
        self.fall = nn.Linear(width, width)
        nn.init.zeros_(self.fall.weight)
        nn.init.zeros_(self.fall.bias)
        if self.s_affine is not None:
            nn.init.zeros_(self.s_affine.weight)
            nn.init.zeros_(self.s_affine.bias)

    def forward(self, hidden: Tensor, t_vector: Tensor, s_vector: Tensor | None) -> Tensor:
        scale, shift = add_s(self.t_affine(t_vector), self.s_affine, s_vector).chunk(2, dim=1)
        modulated = self.norm(hidden) * (1 + scale) + shift
        return hidden + self.fall(self.dropout(nn.functional.silu(self.rise(modulated))))
