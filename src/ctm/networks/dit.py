"""A diffusion transformer (DiT, arXiv 2212.09748) over patches of images or steps of sequences, with CTM's s branch."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ctm.conditions import Condition
from ctm.networks.base import add_s
from ctm.networks.fields import Shapes
from ctm.networks.sequences import CrossAttention, SequenceFields, sequence_shapes, split_heads
from ctm.networks.vectors import VectorNetwork

__all__ = ["DiT"]


class DiT(VectorNetwork):
    """F for images (C, H, W) or sequences (C, L): patches become tokens, and transformer blocks work on them.

    A block is x + α₁·attention(norm(x)), then x + α₂·MLP(norm(x)); where the condition has sequences, x + cross-attention stands
    between them. Scale, shift and α are linear in the vectors of t and s (adaLN-zero). α starts at zero, and so does all that
    comes from s. So F is zero at first, and a student copied from a teacher starts as its teacher.

    shape: of one sample; its last sides are multiples of patch. num_classes: 0 = no labels. patch: side of a square of pixels,
    or steps of a sequence, that become one token. width: of a token. blocks: how many. heads: of attention; they divide the
    width. mlp_mult: hidden width of a block's MLP over width. embedding: size of the level vectors. s_embedding: CTM's s
    branch, or none (a diffusion model). guidance_embedding: whether the guidance scale is an input. dropout: in the MLPs.
    arrays: the fields of a condition beside labels. Vectors and maps are as of `ctm.networks.fields.Fields`. A field (L, D),
    whose D is not the sample's last side, is a sequence: attention sees its tokens, but for those that NAME_mask leaves out.
    Raises ValueError for a shape that patches do not divide, and for a width that heads do not divide.
    """

    def __init__(
        self,
        shape: Sequence[int],
        num_classes: int = 0,
        *,
        patch: int = 2,
        width: int = 384,
        blocks: int = 12,
        heads: int = 6,
        mlp_mult: int = 4,
        embedding: int = 256,
        s_embedding: bool = True,
        guidance_embedding: bool = False,
        dropout: float = 0.0,
        arrays: Shapes | None = None,
    ) -> None:
        super().__init__()
        channels, *sides = _checked(shape, patch, width, heads)
        sequences = sequence_shapes(arrays or {}, shape)
        others = {name: sides_of for name, sides_of in (arrays or {}).items() if name not in sequences}
        self._build_vectors(
            shape, num_classes, embedding, others, s_embedding=s_embedding, guidance_embedding=guidance_embedding
        )
        self.sequences = SequenceFields(sequences, width) if sequences else None
        self.patch, self.channels = patch, channels
        self.places = [side // patch for side in sides]
        inputs = (channels + self.conditions.channels) * patch ** len(sides)
        self.first = nn.Linear(inputs, width)
        self.register_buffer("positions", _positions(self.places, width), persistent=False)
        self.blocks = nn.ModuleList(
            _Block(width, heads, mlp_mult, embedding, s_embedding, bool(sequences), dropout) for _ in range(blocks)
        )
        self.norm = _ModulatedNorm(width, embedding, s_embedding, parts=2)
        self.last = nn.Linear(width, channels * patch ** len(sides))
        self._initialise()

    positions: Tensor

    def _initialise(self) -> None:
        """Xavier-uniform weights and zero biases, as DiT; zero what opens residual branches, comes from s, or comes last."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for module in self.modules():
            if isinstance(module, _ModulatedNorm):
                module.make_zero()
            elif isinstance(module, CrossAttention):
                nn.init.zeros_(module.out.weight)
        if self.guidance_embedding is not None:
            self.guidance_embedding.make_zero()
        nn.init.zeros_(self.last.weight)

    @property
    def last_layer(self) -> nn.Module:
        return self.last

    def forward(self, x: Tensor, t: Tensor, s: Tensor | None = None, condition: Condition = None) -> Tensor:
        """x (B, C, H, W) or (B, C, L), levels t and s (B,), condition: of the B samples, or None -> like x. s is ignored without
        an s branch, and s = None leaves that branch out."""
        t_vector, s_vector = self._vectors(t, s, condition)
        hidden = self._hidden(x, t_vector, s_vector, condition)[-1]
        scale, shift = self.norm.parts(t_vector, s_vector)
        return self._image(self.last(self.norm(hidden, scale, shift)))

    def _hidden(self, x: Tensor, t_vector: Tensor, s_vector: Tensor | None, condition: Condition) -> list[Tensor]:
        """Tokens (B, N, width) before the blocks and after each."""
        tokens = self.first(self._tokens(self.conditions.beside(x, condition)))
        hidden = [tokens + self.positions.to(tokens.dtype)]
        context = None if self.sequences is None else self.sequences(condition, x.shape[0])
        for block in self.blocks:
            hidden.append(block(hidden[-1], t_vector, s_vector, context))
        return hidden

    def _tokens(self, x: Tensor) -> Tensor:
        """(B, C, …) -> (B, N, C·patch^d), the places row by row."""
        for axis, places in enumerate(self.places):
            x = x.unflatten(2 + 2 * axis, (places, self.patch))  # (B, C, h, p, w, p)
        n = x.dim()
        order = [0, *range(2, n, 2), 1, *range(3, n, 2)]
        return x.permute(order).flatten(1 + len(self.places)).flatten(1, len(self.places))

    def _image(self, tokens: Tensor) -> Tensor:
        """What `_tokens` does, undone."""
        d = len(self.places)
        x = tokens.reshape(tokens.shape[0], *self.places, self.channels, *(self.patch,) * d)
        order = [0, 1 + d, *(axis for i in range(d) for axis in (1 + i, 2 + d + i))]
        return x.permute(order).reshape(
            tokens.shape[0], self.channels, *(places * self.patch for places in self.places)
        )

    def encode(self, x: Tensor, t: Tensor, condition: Condition = None) -> list[Tensor]:
        """What each quarter of the blocks ends with: x (B, C, …), already scaled by c_in, at levels t (B,), condition as in
        `forward` -> maps (B, width, h, w), of sequences (B, width, l, 1)."""
        t_vector, _ = self._vectors(t, None, condition)
        hidden = self._hidden(x, t_vector, None, condition)
        wanted = sorted({math.ceil(len(self.blocks) * quarter / 4) for quarter in (1, 2, 3, 4)} - {0})
        maps = [hidden[index].transpose(1, 2).reshape(x.shape[0], -1, *self.places) for index in wanted]
        return [found if found.dim() == 4 else found[..., None] for found in maps]


class _ModulatedNorm(nn.Module):
    """Layer norm without weights of its own; scale and shift (and α) come from the vectors of t and s."""

    def __init__(self, width: int, embedding: int, s_embedding: bool, parts: int) -> None:
        super().__init__()
        self.count = parts
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.t_affine = nn.Linear(embedding, parts * width)
        self.s_affine = nn.Linear(embedding, parts * width) if s_embedding else None

    def make_zero(self) -> None:
        for affine in (self.t_affine, self.s_affine):
            if affine is not None:
                nn.init.zeros_(affine.weight)
                nn.init.zeros_(affine.bias)

    def parts(self, t_vector: Tensor, s_vector: Tensor | None) -> tuple[Tensor, ...]:
        """(B, 1, width) each."""
        return add_s(self.t_affine(t_vector), self.s_affine, s_vector)[:, None].chunk(self.count, dim=-1)

    def forward(self, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        return self.norm(x) * (1 + scale) + shift


class _Block(nn.Module):
    def __init__(
        self, width: int, heads: int, mlp_mult: int, embedding: int, s_embedding: bool, crosses: bool, dropout: float
    ) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = _ModulatedNorm(width, embedding, s_embedding, parts=3)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.cross_norm = nn.LayerNorm(width, eps=1e-6) if crosses else None
        self.cross = CrossAttention(width, heads) if crosses else None
        self.mlp_norm = _ModulatedNorm(width, embedding, s_embedding, parts=3)
        self.rise = nn.Linear(width, mlp_mult * width)
        self.dropout = nn.Dropout(dropout)
        self.fall = nn.Linear(mlp_mult * width, width)

    def forward(
        self, x: Tensor, t_vector: Tensor, s_vector: Tensor | None, context: tuple[Tensor, Tensor] | None
    ) -> Tensor:
        """x (B, N, width), level vectors (B, embedding), context: tokens and mask of the condition's sequences -> like x."""
        scale, shift, gate = self.attention_norm.parts(t_vector, s_vector)
        x = x + gate * self._attended(self.attention_norm(x, scale, shift))
        if self.cross is not None and self.cross_norm is not None and context is not None:
            x = x + self.cross(self.cross_norm(x), *context)
        scale, shift, gate = self.mlp_norm.parts(t_vector, s_vector)
        hidden = nn.functional.gelu(self.rise(self.mlp_norm(x, scale, shift)), approximate="tanh")
        return x + gate * self.fall(self.dropout(hidden))

    def _attended(self, x: Tensor) -> Tensor:
        query, key, value = (split_heads(part, self.heads) for part in self.qkv(x).chunk(3, dim=-1))
        mixed = nn.functional.scaled_dot_product_attention(query, key, value)
        return self.out(mixed.transpose(1, 2).flatten(2))


def _checked(shape: Sequence[int], patch: int, width: int, heads: int) -> list[int]:
    """The shape. Raises ValueError where it is none of an image or sequence, or does not divide."""
    sides = [int(side) for side in shape]
    if len(sides) not in (2, 3):
        raise ValueError(f"DiT takes images (C, H, W) and sequences (C, L), got shape {sides}: use MLP for vectors")
    if any(side % patch for side in sides[1:]):
        raise ValueError(f"DiT over patches of {patch} needs sides divisible by it, got {sides[1:]}: use another patch")
    if width % heads or width % (2 * len(sides[1:])):
        raise ValueError(f"DiT needs a width that heads ({heads}) and {2 * len(sides[1:])} divide, got {width}")
    return sides


def _positions(places: Sequence[int], width: int) -> Tensor:
    """Sines and cosines of each axis' place, at frequencies 10000^(−i/half), in an equal share of the width: (1, N, width)."""
    share = width // len(places)
    half = share // 2
    frequencies = 10000 ** (-torch.arange(half, dtype=torch.float64) / half)
    found = []
    for place in torch.meshgrid(*(torch.arange(count, dtype=torch.float64) for count in places), indexing="ij"):
        angle = place.reshape(-1, 1) * frequencies
        found.append(torch.cat([angle.sin(), angle.cos()], dim=1))
    return nn.functional.pad(torch.cat(found, dim=1), (0, width - share * len(places)))[None].float()
