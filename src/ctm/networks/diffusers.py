"""Networks of the library diffusers, called as ours are: F(c_in·x, level of t, level of s, condition) -> like x."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from ctm.arguments import checked
from ctm.conditions import GUIDANCE, MASK, Condition, labels_of, presence
from ctm.foreign.text import plain
from ctm.networks.base import Network
from ctm.networks.diffusers_parts import add_branches
from ctm.networks.fields import Shapes

__all__ = ["TEXT", "DiffusersNetwork", "Kind", "classes_in", "known_settings", "takes_fractions"]

Kind = Literal["UNet2DModel", "UNet2DConditionModel", "DiTTransformer2DModel"]
TEXT = "text"
_MOST_POSITIONS = 1 << 28  # numbers in DiT's table of positions, which no weights hold
_UNREAD: dict[str, dict[str, tuple[Any, ...]]] = {  # settings that ask for what is not here, and the values that do not
    "UNet2DModel": {"time_embedding_type": ("positional", "learned"), "class_embed_type": (None,)},
    "UNet2DConditionModel": {
        "time_embedding_type": ("positional",),
        "class_embed_type": (None,),
        "addition_embed_type": (None,),
        "encoder_hid_dim_type": (None,),
        "encoder_hid_dim": (None,),
        "time_cond_proj_dim": (None,),
    },
    "DiTTransformer2DModel": {"norm_type": ("ada_norm_zero",)},
}


class DiffusersNetwork(Network):
    """A UNet2DModel, UNet2DConditionModel or DiTTransformer2DModel of diffusers with these settings. Random weights, as diffusers
    makes them; `ctm.teachers.load_teacher` reads a directory of diffusers with its weights.

    shape: of one sample, (C, H, W). num_classes: of labels that a caller gives; 0 = none. kind: the class, one of three known by
    name. config: its settings, as diffusers' config.json has them. null_class: the class that stands for no label, None: there is
    none, and each row needs a label; DiT has its own. arrays: {"text": (tokens, dim)} for a UNet2DConditionModel. knows_empty:
    whether the weights hold the embedded empty prompt, `empty_text` (1, tokens, dim), which a row without text gets; if not, each
    row needs a text.
    student: adds a branch for the level s. guidance_embedding: adds one for the guidance scale. Both are zero at first, so that
    the student is the network that it was copied from.
    outputs: 2 gives two outputs for each channel of the sample, as `ctm.preconditioning.NoiseAndSample` takes them.

    A network that predicts a variance too (2·C channels) gives its first C. Raises ValueError for settings that diffusers or this
    class does not take, and ImportError without diffusers."""

    empty_text: Tensor

    def __init__(
        self,
        shape: Sequence[int],
        num_classes: int = 0,
        *,
        kind: Kind,
        config: Mapping[str, Any],
        null_class: int | None = None,
        arrays: Shapes | None = None,
        knows_empty: bool = False,
        student: bool = False,
        guidance_embedding: bool = False,
        outputs: int = 1,
    ) -> None:
        super().__init__()
        settings = known_settings(kind, config)[0]
        _check(shape, kind, settings)
        if isinstance(outputs, bool) or outputs not in (1, 2):
            raise ValueError(f"outputs is 1 or 2, got {outputs!r}")
        self.kind, self.outputs, self.channels = kind, outputs, outputs * int(shape[0])
        if outputs > 1:
            settings["out_channels"] = self.channels
        self.module = _build(kind, settings)
        self.classes = classes_in(kind, settings)
        self.null_class = self.classes if kind == "DiTTransformer2DModel" else null_class
        self._check_classes(num_classes)
        self.knows_empty = knows_empty
        self._check_text(arrays)
        self.table = int(settings["num_train_timesteps"]) if not takes_fractions(kind, settings) else None
        self.branches = ["s"] * student + ["guidance"] * guidance_embedding
        if kind == "DiTTransformer2DModel":  # a label is left out by the training, not by the network
            for block in self._any.transformer_blocks:
                block.norm1.emb.class_embedder.dropout_prob = 0.0
        if self.branches:
            add_branches(self.module, self.branches)

    @property
    def _any(self) -> Any:
        """The module, whose class is known to diffusers only."""
        return self.module

    @property
    def last_layer(self) -> nn.Module:
        return self._any.proj_out_2 if self.kind == "DiTTransformer2DModel" else self._any.conv_out

    def begin_from(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of a network with one output as this one has them: the last layer gives its first C channels, and zero for
        the second output. With outputs 1 they are as they were."""
        found = dict(tensors)
        if self.outputs == 1:
            return found
        last = next(name for name, module in self.named_modules() if module is self.last_layer)
        sample = self.channels // self.outputs
        for kind, own in self.last_layer.named_parameters():
            theirs = found.get(f"{last}.{kind}")
            places = len(own) // self.channels  # DiT's last layer gives the channels of each pixel of a patch
            if theirs is not None and len(theirs) % places == 0 and len(theirs) >= places * sample:
                kept = theirs.reshape(places, -1, *theirs.shape[1:])[:, :sample]
                found[f"{last}.{kind}"] = torch.cat([kept, torch.zeros_like(kept)], dim=1).flatten(0, 1)
        return found

    def checkpoint_gradients(self) -> None:
        self.checkpointing = True
        self._any.enable_gradient_checkpointing()

    def forward(self, x: Tensor, t: Tensor, s: Tensor | None = None, condition: Condition = None) -> Tensor:
        """x (B, *shape), levels t and s (B,) as the model's preconditioning gives them, condition: of the B samples, or None ->
        like x. s is ignored without its branch, and t stands for an s of None.

        A network with a learned row for each timestep is asked at the two whole ones around t, and the answers are mixed in the
        share of t between them. Raises ValueError for a row without label or text where the network has nothing that stands
        for none (NaN, where the call is `inside`)."""
        arguments, lost = self._arguments(x, condition)
        rows = [t, *(self._row(name, t, s, condition) for name in self.branches)]
        if self.table is None:
            out = self._ask(x, rows, arguments)
        else:
            below = t.floor().clamp(0, self.table - 2)
            both = [torch.cat([below, below + 1]), *(torch.cat([row, row]) for row in rows[1:])]
            twice = {name: torch.cat([value, value]) for name, value in arguments.items()}
            low, high = self._ask(torch.cat([x, x]), both, twice).chunk(2)
            share = (t - below).to(low.dtype)[:, None, None, None]
            out = (1 - share) * low + share * high
        return out if lost is None else out.masked_fill(lost[:, None, None, None], torch.nan)

    def _ask(self, x: Tensor, rows: list[Tensor], arguments: Mapping[str, Tensor]) -> Tensor:
        timestep = torch.stack(rows) if self.branches else rows[0] if self.table is None else rows[0].long()
        return self._any(x, timestep, **arguments, return_dict=False)[0][:, : self.channels]

    def _row(self, name: str, t: Tensor, s: Tensor | None, condition: Condition) -> Tensor:
        if name == "s":
            return t if s is None else s
        scale = torch.ones_like(t)
        if isinstance(condition, Mapping) and GUIDANCE in condition:
            there = presence(condition, GUIDANCE, t.shape[0])
            scale = torch.where(there, condition[GUIDANCE].to(scale), scale)
        return scale

    def _arguments(self, x: Tensor, condition: Condition) -> tuple[dict[str, Tensor], Tensor | None]:
        """What the module takes beside x and the timestep, and the rows (B,) that lack what it cannot do without, or None."""
        arguments: dict[str, Tensor] = {}
        lost: Tensor | None = None
        if self.classes:
            given = labels_of(condition)
            labels = torch.full((x.shape[0],), -1, device=x.device) if given is None else given
            absent = labels < 0
            if self.null_class is None:
                lost = self._missing(absent, "a label", "null class", given is None)
            arguments["class_labels"] = torch.where(absent, self.null_class or 0, labels)
        if TEXT in self.fields:
            text, mask, absent = self._text(x, condition)
            arguments["encoder_hidden_states"] = text
            if mask is not None:
                arguments["encoder_attention_mask"] = mask
            if not self.knows_empty:
                none = self._missing(absent, "a text", "empty prompt", False)
                lost = none if lost is None or none is None else lost | none
        return arguments, lost

    def _missing(self, absent: Tensor, what: str, none: str, surely: bool) -> Tensor | None:
        """The rows that lack something. Raises ValueError where they can be looked at and there are any."""
        if surely or (checked() and absent.device.type == "cpu" and bool(absent.any())):
            raise ValueError(
                f"this {self.kind} has no {none}, so each sample needs {what}: give one for each, or convert the model again "
                "with --set null_class=…, the class that it was trained with for none"
                if what == "a label"
                else f"this {self.kind} has no embedded {none}, so each sample needs {what}: give one for each"
            )
        return None if absent.device.type == "cpu" and checked() else absent

    def _text(self, x: Tensor, condition: Condition) -> tuple[Tensor, Tensor | None, Tensor]:
        """(B, tokens, dim) with the empty prompt where there is none, its mask where one is given, and where there is none."""
        there = presence(condition, TEXT, x.shape[0], x.device)
        empty = self.empty_text.to(x.dtype) if self.knows_empty else x.new_zeros(1, *self.fields[TEXT])
        if not isinstance(condition, Mapping) or TEXT not in condition:
            return empty.expand(x.shape[0], -1, -1), None, ~there
        text = torch.where(there[:, None, None], condition[TEXT].to(x.dtype), empty)
        mask = condition.get(TEXT + MASK)
        return text, None if mask is None else mask | ~there[:, None], ~there

    def _check_classes(self, num_classes: int) -> None:
        kept = self.classes - (self.kind != "DiTTransformer2DModel" and self.null_class == self.classes - 1)
        if self.null_class is not None and not 0 <= self.null_class <= self.classes - (self.kind[0] == "U"):
            raise ValueError(
                f"null_class is one of the network's {self.classes} classes, from 0 on, got {self.null_class}"
            )
        if num_classes != kept:
            raise ValueError(
                f"num_classes is {num_classes}, and this {self.kind} takes {kept} labels"
                + ("" if self.null_class is None else f" beside its null class {self.null_class}")
            )

    def _check_text(self, arrays: Shapes | None) -> None:
        found = {name: tuple(shape) for name, shape in (arrays or {}).items()}
        if self.kind != "UNet2DConditionModel":
            if found:
                raise ValueError(f"a {self.kind} takes no arrays, got {', '.join(map(plain, found))}")
            return
        shape = found.get(TEXT, ())
        if set(found) != {TEXT} or len(shape) != 2:
            raise ValueError(
                f"a UNet2DConditionModel takes one array, text, of shape (tokens, dim), got {plain(str(found))}"
            )
        if self.knows_empty:
            self.register_buffer("empty_text", torch.zeros(1, *shape))


def takes_fractions(kind: Kind, config: Mapping[str, Any]) -> bool:
    """Whether a module with these settings embeds fractional timesteps: all but those with a learned row for each whole one."""
    return kind != "UNet2DModel" or config.get("time_embedding_type", "positional") != "learned"


def known_settings(kind: Kind, config: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The settings that the class takes, and the names of those that it does not: of another version of diffusers, or its notes
    (which begin with _). Raises ValueError for another kind, and ImportError without diffusers."""
    known = set(inspect.signature(_class(kind).__init__).parameters) - {"self"}
    taken = {name: value for name, value in config.items() if name in known}
    return taken, [name for name in config if name not in known and not name.startswith("_")]


def _check(shape: Sequence[int], kind: Kind, settings: Mapping[str, Any]) -> None:
    """Raises ValueError for settings that ask for what is not here, and for another shape than the module's."""
    for name, readable in _UNREAD[kind].items():
        value = settings.get(name, readable[0])
        if value not in readable:
            words = " or ".join("none" if known is None else repr(known) for known in readable)
            raise ValueError(f"this {kind} has {name} {plain(str(value))!r}, and what is read here has {words}")
    if len(shape) != 3:
        raise ValueError(f"a {kind} is for samples of shape [channels, height, width], got {list(shape)}")
    taken = settings.get("in_channels", 3 if kind == "UNet2DModel" else 4)
    given = settings.get("out_channels") or (taken if kind[0] == "D" else 3 if kind == "UNet2DModel" else 4)
    if taken != shape[0] or given not in (taken, 2 * taken):
        raise ValueError(
            f"this {kind} takes {taken} channels and gives {given}, for samples of {shape[0]}: it must take those of the sample "
            "and give as many, or twice as many with a learned variance"
        )
    if kind == "DiTTransformer2DModel":
        side = settings.get("sample_size", 32)
        width = settings.get("num_attention_heads", 16) * settings.get("attention_head_dim", 72)
        if (
            list(shape[1:]) != [side, side]
            or (side // max(settings.get("patch_size", 2), 1)) ** 2 * width > _MOST_POSITIONS
        ):
            raise ValueError(
                f"this {kind} is for samples of {side}×{side} pixels with {width} channels inside, got {list(shape[1:])} (at "
                "most 2^28 numbers in its table of positions)"
            )


def classes_in(kind: Kind, settings: Mapping[str, Any]) -> int:
    """How many rows of classes the module knows, DiT's null class not counted."""
    name = "num_embeds_ada_norm" if kind == "DiTTransformer2DModel" else "num_class_embeds"
    return int(settings.get(name, 1000 if kind == "DiTTransformer2DModel" else 0) or 0)


@cache
def _class(kind: str) -> Callable[..., nn.Module]:
    if kind not in get_args(Kind):
        raise ValueError(f"a network of diffusers is one of {', '.join(get_args(Kind))}, got {plain(kind)!r}")
    try:
        import diffusers
    except ImportError as error:
        raise ImportError(f"a {kind} needs diffusers: pip install 'ctm-torch[diffusers]'") from error
    return getattr(diffusers, kind)


def _build(kind: Kind, settings: Mapping[str, Any]) -> nn.Module:
    """The module with random weights. Raises ValueError where diffusers does not take the settings."""
    try:
        return _class(kind)(**settings)
    except (TypeError, ValueError, ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError) as error:
        reason = plain(f"{type(error).__name__}: {error}", 200)
        raise ValueError(f"diffusers cannot build a {kind} with these settings: {reason}") from error
