"""EDM2's U-Net (arXiv 2312.02696, figure 21 and appendix B): every layer keeps the magnitude of its activations and weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from ctm.conditions import Condition, labels_of
from ctm.networks.base import GuidanceEmbedding, Network, one_hot_labels
from ctm.networks.blocks import Resample

__all__ = ["EDM2", "MPConv", "MPFourier", "mp_cat", "mp_silu", "mp_sum", "normalised"]

_EPS = 1e-4
_SILU = 0.596  # root of the mean of SiLU(x)² for x ~ N(0, 1): equation 81
How: TypeAlias = "Literal['down', 'up'] | None"


def normalised(x: Tensor, dims: Sequence[int]) -> Tensor:
    """x / (rms(x) + 10⁻⁴), the root mean square over `dims`, in float32 at least; like x (equations 47 and 66)."""
    exact = x.to(torch.promote_types(x.dtype, torch.float32))
    count = math.prod(x.shape[dim] for dim in dims)
    size = torch.linalg.vector_norm(exact, dim=tuple(dims), keepdim=True) / math.sqrt(count)
    return x / (size + _EPS).to(x.dtype)


def mp_silu(x: Tensor) -> Tensor:
    """SiLU(x)/0.596, which keeps the magnitude of normal numbers (equation 81)."""
    return nn.functional.silu(x) / _SILU


def mp_sum(a: Tensor, b: Tensor, balance: float) -> Tensor:
    """((1 − t)·a + t·b)/√((1 − t)² + t²): the magnitude of two independent parts is kept (equation 88). t = balance in [0, 1]."""
    return torch.lerp(a, b, balance) / math.hypot(1 - balance, balance)


def mp_cat(a: Tensor, b: Tensor, balance: float) -> Tensor:
    """a (B, N, …) and b (B, M, …) side by side, weighed so that each has its share t = balance of b whatever N and M are, and the
    magnitude is kept (equation 103)."""
    first, second = a.shape[1], b.shape[1]
    whole = math.sqrt(first + second) / math.hypot(1 - balance, balance)
    return torch.cat([a * (whole * (1 - balance) / math.sqrt(first)), b * (whole * balance / math.sqrt(second))], dim=1)


class MPFourier(nn.Module):
    """(B,) -> (B, channels): √2·cos(2π(f·x + φ)), f ~ N(0, 1) and φ uniform in [0, 1], drawn once (equation 75). The buffers hold
    2πf and 2πφ."""

    freqs: Tensor
    phases: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("freqs", 2 * math.pi * torch.randn(channels))
        self.register_buffer("phases", 2 * math.pi * torch.rand(channels))

    def forward(self, x: Tensor) -> Tensor:
        angle = x[:, None] * self.freqs.to(x.dtype) + self.phases.to(x.dtype)
        return math.sqrt(2) * angle.cos()


class MPConv(nn.Module):
    """A convolution (kernel 1 or 3) or a linear layer (kernel 0) without bias, whose weights count by their direction alone
    (equation 47), times a gain. In train mode each call first sets the stored weight to its normalised form (equation 66), so
    that no step can make it grow."""

    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, *((kernel, kernel) if kernel else ())))

    def forward(self, x: Tensor, gain: Tensor | None = None) -> Tensor:
        """x (B, inputs) or (B, inputs, H, W) -> (B, outputs, …), in x's precision. gain: one number, None for 1."""
        dims = tuple(range(1, self.weight.ndim))
        if self.training:
            self._settle(dims)
        exact = self.weight.to(torch.promote_types(self.weight.dtype, torch.float32))
        weight = normalised(exact, dims) / math.sqrt(self.weight[0].numel())
        weight = (weight if gain is None else weight * gain).to(x.dtype)
        if weight.ndim == 2:
            return nn.functional.linear(x, weight)
        return nn.functional.conv2d(x, weight, padding=weight.shape[-1] // 2)

    def _settle(self, dims: tuple[int, ...]) -> None:
        """Bring each row to the root mean square 1 − 10⁻⁴, where `normalised` leaves it as it is. By .data: a second call before
        a backward pass changes nothing but rounding, and autograd need not know."""
        weight = self.weight.data
        size = torch.linalg.vector_norm(weight, dim=dims, keepdim=True) / math.sqrt(weight[0].numel())
        weight.mul_((1 - _EPS) / size.clamp_min(_EPS))


class Block(nn.Module):
    """One block on the way down ("enc": pixel norm first) or up ("dec"): a residual branch whose middle is multiplied by
    1 + the level's gains, then attention where heads > 0, then the clip of its values."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        embedding: int,
        *,
        encodes: bool,
        how: How = None,
        heads: int = 0,
        s_embedding: bool = False,
        resample_filter: Sequence[float] = (1, 1),
        dropout: float = 0.0,
        balances: tuple[float, float] = (0.3, 0.3),
        clip: float | None = 256.0,
    ) -> None:
        super().__init__()
        self.encodes, self.heads, self.clip = encodes, heads, clip
        self.res_balance, self.attn_balance = balances
        self.resample = None if how is None else Resample(how, resample_filter)
        self.emb_gain = nn.Parameter(torch.zeros([]))
        self.conv_res0 = MPConv(outputs if encodes else inputs, outputs, 3)
        self.emb_linear = MPConv(embedding, outputs, 0)
        self.s_gain = nn.Parameter(torch.zeros([])) if s_embedding else None
        self.s_linear = MPConv(embedding, outputs, 0) if s_embedding else None
        self.dropout = nn.Dropout(dropout)
        self.conv_res1 = MPConv(outputs, outputs, 3)
        self.conv_skip = MPConv(inputs, outputs, 1) if inputs != outputs else None
        self.attn_qkv = MPConv(outputs, 3 * outputs, 1) if heads else None
        self.attn_proj = MPConv(outputs, outputs, 1) if heads else None

    def forward(self, x: Tensor, t_vector: Tensor, s_vector: Tensor | None) -> Tensor:
        """x (B, inputs, H, W), level vectors (B, embedding) -> (B, outputs, …)."""
        if self.resample is not None:
            x = self.resample(x)
        if self.encodes:
            x = normalised(x if self.conv_skip is None else self.conv_skip(x), (1,))
        factor = 1 + self.emb_linear(t_vector, self.emb_gain)
        if self.s_linear is not None and s_vector is not None:
            factor = factor + self.s_linear(s_vector, self.s_gain)
        hidden = mp_silu(self.conv_res0(mp_silu(x)) * factor[:, :, None, None])
        hidden = self.conv_res1(self.dropout(hidden))
        if not self.encodes and self.conv_skip is not None:
            x = self.conv_skip(x)
        x = mp_sum(x, hidden, self.res_balance)
        if self.attn_qkv is not None and self.attn_proj is not None:
            x = mp_sum(x, self.attn_proj(self._attended(self.attn_qkv(x))), self.attn_balance)
        return x if self.clip is None else x.clamp(-self.clip, self.clip)

    def _attended(self, qkv: Tensor) -> Tensor:
        """Cosine attention: queries, keys and values normalised for each pixel and head; channels (three, heads, dim)."""
        n, channels, height, width = qkv.shape
        parts = qkv.reshape(n, 3, self.heads, channels // (3 * self.heads), height * width)
        q, k, v = normalised(parts, (3,)).transpose(-1, -2).contiguous().unbind(1)
        found = nn.functional.scaled_dot_product_attention(q, k, v)
        return found.transpose(-1, -2).reshape(n, channels // 3, height, width)


class EDM2(Network):
    """F for images (C, H, W) of any channel count; H and W divisible by 2^(levels − 1). Parameters have EDM2's names.

    shape: of one image. num_classes: 0 = no labels. channels: of the finest level. channel_mult: their multiple at each level,
    finest first. blocks: a level has on the way down, one more on the way up. attention: image heights at which blocks attend.
    head_channels: of one attention head; blocks narrower than one do not attend. noise_mult, embedding_mult: sizes of the Fourier
    features and of the level vectors over channels, None: as the finest and as the widest level. s_embedding: CTM's s branch, or
    none (a diffusion model). guidance_embedding: whether the guidance scale is an input. dropout: before each block's last
    convolution. res_balance, attn_balance, label_balance, concat_balance: shares of the residual branch, of attention, of the
    class and of the skip connection in their sums. clip: largest magnitude that a block gives, None for any. resample_filter:
    one axis of the filter that halves and doubles images.
    The gains of the s branch and the guidance's row start at zero: a student copied from a teacher starts as its teacher.
    Raises ValueError for an image size that the levels do not divide, and for shares outside [0, 1].
    """

    def __init__(
        self,
        shape: Sequence[int],
        num_classes: int = 0,
        *,
        channels: int = 192,
        channel_mult: Sequence[int] = (1, 2, 3, 4),
        blocks: int = 3,
        attention: Sequence[int] = (16, 8),
        head_channels: int = 64,
        noise_mult: int | None = None,
        embedding_mult: int | None = None,
        s_embedding: bool = True,
        guidance_embedding: bool = False,
        dropout: float = 0.0,
        res_balance: float = 0.3,
        attn_balance: float = 0.3,
        label_balance: float = 0.5,
        concat_balance: float = 0.5,
        clip: float | None = 256.0,
        resample_filter: Sequence[float] = (1, 1),
    ) -> None:
        super().__init__()
        shares = (res_balance, attn_balance, label_balance, concat_balance)
        if not all(0 <= share <= 1 for share in shares):
            raise ValueError(f"the balances of EDM2 are shares in [0, 1], got {', '.join(map(str, shares))}")
        widths = [channels * mult for mult in channel_mult]
        features = channels * noise_mult if noise_mult is not None else widths[0]
        embedding = channels * embedding_mult if embedding_mult is not None else max(widths)
        self.num_classes, self.label_balance, self.concat_balance = num_classes, label_balance, concat_balance
        self.emb_fourier = MPFourier(features)
        self.emb_noise = MPConv(features, embedding, 0)
        self.emb_label = MPConv(num_classes, embedding, 0) if num_classes else None
        self.s_noise = MPConv(features, embedding, 0) if s_embedding else None
        self.guidance_embedding = GuidanceEmbedding(channels, embedding) if guidance_embedding else None
        self.out_gain = nn.Parameter(torch.zeros([]))

        def block(inputs: int, outputs: int, attends: bool, encodes: bool, how: How = None) -> Block:
            heads = outputs // head_channels if attends else 0
            if heads and outputs % heads:
                raise ValueError(f"{heads} attention heads do not divide {outputs} channels: use another head_channels")
            return Block(
                inputs,
                outputs,
                embedding,
                encodes=encodes,
                how=how,
                heads=heads,
                s_embedding=s_embedding,
                resample_filter=resample_filter,
                dropout=dropout,
                balances=(res_balance, attn_balance),
                clip=clip,
            )

        self._build(shape, widths, blocks, attention, block)

    def _build(
        self,
        shape: Sequence[int],
        widths: Sequence[int],
        blocks: int,
        attention: Sequence[int],
        block: Callable[..., Block],
    ) -> None:
        """The layers on the way down and up. block(inputs, outputs, attends, encodes, how) makes one."""
        in_channels, height, width = shape
        divisor = 2 ** (len(widths) - 1)
        if height % divisor or width % divisor:
            raise ValueError(
                f"EDM2 with {len(widths)} levels needs image sides divisible by {divisor}, got {height}×{width}: use fewer "
                "entries in channel_mult or another image size"
            )
        self.enc, self.dec = nn.ModuleDict(), nn.ModuleDict()
        skips, current = [widths[0]], widths[0]
        self.enc[f"{height}x{height}_conv"] = MPConv(in_channels + 1, current, 3)
        for level, out in enumerate(widths):
            side = height >> level
            if level > 0:
                self.enc[f"{side}x{side}_down"] = block(current, current, False, True, "down")
                skips.append(current)
            for index in range(blocks):
                self.enc[f"{side}x{side}_block{index}"] = block(current, out, side in attention, True)
                current = out
                skips.append(current)
        for level, out in reversed(list(enumerate(widths))):
            side = height >> level
            if level == len(widths) - 1:
                self.dec[f"{side}x{side}_in0"] = block(current, current, True, False)
                self.dec[f"{side}x{side}_in1"] = block(current, current, False, False)
            else:
                self.dec[f"{side}x{side}_up"] = block(current, current, False, False, "up")
            for index in range(blocks + 1):
                self.dec[f"{side}x{side}_block{index}"] = block(current + skips.pop(), out, side in attention, False)
                current = out
        self.out_conv = MPConv(current, in_channels, 3)

    @property
    def last_layer(self) -> nn.Module:
        return self.out_conv

    def checkpoint_gradients(self) -> None:
        self.checkpointing = True

    def _vector(self, level: Tensor, noise: nn.Module, condition: Condition, guided: bool) -> Tensor:
        """The level vector (B, embedding) of levels (B,): c_noise = ¼·ln σ, with the class in it."""
        features = self.emb_fourier(level.log() / 4).to(self.emb_noise.weight.dtype)
        vector: Tensor = noise(features)
        if self.emb_label is not None:
            rows = one_hot_labels(labels_of(condition), level.shape[0], self.num_classes, features)
            vector = mp_sum(vector, self.emb_label(rows * math.sqrt(self.num_classes)), self.label_balance)
        if guided and self.guidance_embedding is not None:
            vector = vector + self.guidance_embedding(condition, level)
        return mp_silu(vector)

    def forward(self, x: Tensor, t: Tensor, s: Tensor | None = None, condition: Condition = None) -> Tensor:
        """x (B, C, H, W), levels t and s (B,), condition: labels of the B samples, or None -> like x. s is ignored without an s
        branch, and s = None leaves that branch out."""
        t_vector = self._vector(t, self.emb_noise, condition, True)
        with_s = self.s_noise is not None and s is not None
        s_vector = self._vector(s, self.s_noise, condition, False) if with_s else None  # type: ignore[arg-type]
        hidden = torch.cat([x, torch.ones_like(x[:, :1])], dim=1)  # the channel of ones is a bias
        skips = []
        for block in self.enc.values():
            hidden = block(hidden) if isinstance(block, MPConv) else self._block(block, hidden, t_vector, s_vector)
            skips.append(hidden)
        for name, block in self.dec.items():
            if "block" in name:
                hidden = mp_cat(hidden, skips.pop(), self.concat_balance)
            hidden = self._block(block, hidden, t_vector, s_vector)
        return self.out_conv(hidden, self.out_gain)
