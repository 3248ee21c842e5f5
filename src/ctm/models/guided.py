"""Guided models: what guidance changes of a model, and classifier-free guidance (arXiv 2207.12598).

    D_w = D_∅ + w·(D_y − D_∅),   and in a jump the same of g

w = 1 is the conditional model. A teacher is guided by two evaluations, a student into which guidance was distilled by an input of
its network (arXiv 2210.03142).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ctm.arguments import as_levels, as_number, as_state, checked, words_for
from ctm.conditions import (
    GUIDANCE,
    LABELS,
    Condition,
    absent,
    as_condition,
    cat,
    takes_labels,
    with_field,
)
from ctm.models.protocol import Model, can_jump, denoiser_of, g_of, jumper
from ctm.models.trajectory import TrajectoryModel
from ctm.models.wrapper import Wrapper
from ctm.noise import match_dims
from ctm.parametrization import euler_update

__all__ = ["AtGuidance", "ClassifierFree", "Guided", "at_guidance", "at_scale", "image_of", "takes_guidance"]


_LARGEST_SCALE = 1000.0  # of a command: float32 keeps four digits of the difference of two denoised images then


def takes_guidance(model: object) -> bool:
    """Whether the guidance scale is an input of the model, so that `at_guidance` sets it at no further cost."""
    return bool(getattr(model, "takes_guidance", False))


def at_guidance(model: Model, scale: float) -> AtGuidance:
    """The model at one guidance scale, for any sampler: `generate(at_guidance(model, 2.0), …)`.

    Raises ValueError where the scale is no input of the model (`takes_guidance`)."""
    return AtGuidance(model, scale)


def at_scale(model: Model, scale: float) -> AtGuidance | ClassifierFree:
    """The model under classifier-free guidance of this scale, as --cfg gives it: by its own input where guidance was distilled
    into it, else by two evaluations. Raises ValueError for a model that takes no condition, and for a scale outside
    [-1000, 1000], which leaves nothing of the pictures."""
    as_number(scale, "--cfg", -_LARGEST_SCALE, _LARGEST_SCALE, why="1 is the conditional model, 2 to 10 are usual")
    if takes_guidance(model):
        return at_guidance(model, scale)
    if droppable(model) == ():
        raise ValueError("--cfg needs a model with classes, and this one has none: leave it out")
    return ClassifierFree(model, scale)


def _as_scale(scale: float | Tensor, name: str) -> float | Tensor:
    """A number, or a tensor (B,) of numbers. Raises ValueError for anything else; at the boundary also for what is not finite."""
    if not isinstance(scale, Tensor) or scale.dim() == 0:
        return as_number(scale, name)
    if scale.dim() != 1 or scale.is_complex() or scale.dtype == torch.bool:
        raise ValueError(f"{name} is one number, or a tensor (B,) with one for each sample, got {words_for(scale)}")
    if checked() and not bool(scale.isfinite().all()):
        raise ValueError(f"{name} must be finite, got {scale.tolist()[:8]}")
    return scale


def _scale_for(x: Tensor, scale: Tensor) -> Tensor:
    """Scales (B,) for the B samples of x. Raises ValueError for another number of them."""
    if len(scale) != len(x):
        raise ValueError(
            f"the guidance has scales for {len(scale)} samples, and the call is on {len(x)}: give one number"
        )
    return scale.to(x)


class AtGuidance(Wrapper):
    """A model that takes the guidance scale as an input, at one: a model with `denoise` and `jump` as samplers call them.

    scale: a number, or (B,) where all calls are on the same B samples. Samples without a condition are at 1. Raises ValueError
    where the scale is no input of the model."""

    model: TrajectoryModel

    def __init__(self, model: Model, scale: float | Tensor) -> None:
        if not takes_guidance(model):
            raise ValueError(
                f"this {type(model).__name__} does not take a guidance scale: train a TrajectoryModel whose network has "
                "guidance_embedding: true, as in the recipe digits-ctm-guided"
            )
        super().__init__(model)
        self.scale = _as_scale(scale, "the guidance scale")

    @takes_labels
    def denoise(self, x: Tensor, t: Tensor, condition: Condition = None) -> Tensor:
        """D_w(x, t); shapes and errors as of `TrajectoryModel.denoise`."""
        return self.model.denoise(x, t, self._scaled(condition, x))

    @takes_labels
    def g(self, x: Tensor, t: Tensor, s: Tensor, condition: Condition = None) -> Tensor:
        """g of the jump at this scale; shapes and errors as of `TrajectoryModel.g`."""
        return self.model.g(x, t, s, self._scaled(condition, x))

    @takes_labels
    def jump(self, x: Tensor, t: Tensor, s: Tensor, condition: Condition = None) -> Tensor:
        """The jump along the guided flow; shapes and errors as of `TrajectoryModel.jump`."""
        return self.model.jump(x, t, s, self._scaled(condition, x))

    def _scaled(self, condition: Condition, x: Tensor) -> Condition:
        """The condition with the scale as its field."""
        known = as_condition(condition, as_state(x))
        scale = _scale_for(x, self.scale) if isinstance(self.scale, Tensor) else x.new_full((len(x),), self.scale)
        return with_field(known, GUIDANCE, scale)


class Guided(Wrapper):
    """A guided model. A subclass gives `guided`: the denoised image where s is None, else g. `jump` is there where the model has
    one."""

    @takes_labels
    def denoise(self, x: Tensor, t: Tensor, condition: Condition = None) -> Tensor:
        """The guided denoised image. x (B, *shape) at levels t (B,), condition: of the B samples, or None -> like x."""
        return self.guided(x, as_levels(t, as_state(x), zero=True), None, as_condition(condition, x))

    @takes_labels
    def jump(self, x: Tensor, t: Tensor, s: Tensor, condition: Condition = None) -> Tensor:
        """The jump with the guided g. s (B,) ≤ t. Raises ValueError where the model has no jump."""
        if not can_jump(self.model):
            raise ValueError(
                f"{type(self.model).__name__} has no jump, so it cannot be guided in one: use heun or another"
            )
        t, s = as_levels(t, as_state(x), zero=True), as_levels(s, x, "s", zero=True)
        return euler_update(x, self.guided(x, t, s, as_condition(condition, x)), t, s)

    def guided(self, x: Tensor, t: Tensor, s: Tensor | None, condition: Condition) -> Tensor:
        """The guided denoised image where s is None, else the guided g(x, t, s)."""
        raise NotImplementedError

    def unguided(self, x: Tensor, t: Tensor, s: Tensor | None, condition: Condition) -> Tensor:
        """What stands where guidance is switched off: the model's own, with the condition."""
        return image_of(self.model, x, t, s, condition)


def image_of(model: Model, x: Tensor, t: Tensor, s: Tensor | None, condition: Condition) -> Tensor:
    """D(x, t) of a model where s is None, else its g(x, t, s)."""
    return denoiser_of(model, condition)(x, t) if s is None else g_of(jumper(model), x, t, s, condition)


class ClassifierFree(Guided):
    """D_w = D_∅ + w·(D_y − D_∅), both in one call of the model on 2B samples.

    scale: w, a number, or (B,) where all calls are on the same B samples. 0: no condition; 1: the conditional model; above 1:
    guided. For models trained with the condition left out at times; a sample without one has D_∅ for every w. fields: the names
    that D_∅ is without, e.g. ("labels",), None: the whole condition.
    Exact at w = 0 and 1, for jumps too. Else the guided D is none of a diffusion of any data (the powers of blurred densities
    are not the blurred power), and the same combination of g is what a jump makes of it. Raises ValueError for a model that
    says that it takes no condition, for fields that it does not take, and in a call without condition."""

    def __init__(self, model: Model, scale: float | Tensor, fields: Sequence[str] | None = None) -> None:
        known = droppable(model)
        if known == ():
            raise ValueError(
                f"guidance is between a condition and none, but this {type(model).__name__} knows no classes: give a "
                "conditional model"
            )
        unknown = [name for name in fields or () if known is not None and name not in known]
        if unknown or (fields is not None and (isinstance(fields, str) or not fields)):
            takes = "" if known is None else f": it can go without {', '.join(known)}"
            raise ValueError(f"fields are names in the model's condition, got {unknown or fields!r}{takes}")
        super().__init__(model)
        self.scale = _as_scale(scale, "scale")
        self.fields = known if fields is None else tuple(fields)

    def guided(self, x: Tensor, t: Tensor, s: Tensor | None, condition: Condition) -> Tensor:
        if condition is None:
            raise ValueError(
                "classifier-free guidance needs labels, int64 (B,) with −1 for none, or the model's other fields"
            )
        one_scale = not isinstance(self.scale, Tensor)
        if one_scale and self.scale == 1:
            return self.unguided(x, t, s, condition)
        none = absent(condition, self.fields)
        if one_scale and self.scale == 0:
            return self.unguided(x, t, s, none)
        twice = None if s is None else torch.cat([s, s])
        pair = cat([condition, none], [len(x), len(x)])
        both = image_of(self.model, torch.cat([x, x]), torch.cat([t, t]), twice, pair)
        conditional, unconditional = both.chunk(2)
        scale = match_dims(_scale_for(x, self.scale), x) if isinstance(self.scale, Tensor) else self.scale
        return unconditional + scale * (conditional - unconditional)


def droppable(model: object) -> tuple[str, ...] | None:
    """The names in a model's condition that can be left out; () for a model that takes none, None for one that does not say."""
    conditioner = getattr(model, "conditioner", None)
    if conditioner is not None:
        return conditioner.may_be_absent
    classes = getattr(model, "num_classes", None)
    return None if classes is None else ((LABELS,) if classes else ())
