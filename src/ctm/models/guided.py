"""Guided models: what guidance changes of a model, and classifier-free guidance (arXiv 2207.12598).

    D_w = D_∅ + w·(D_y − D_∅),   and in a jump the same of g

w = 1 is the conditional model. A teacher is guided by two evaluations, a student into which guidance was distilled by an input of
its network (arXiv 2210.03142).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ctm.arguments import as_labels, as_levels, as_number, as_state
from ctm.models.protocol import denoiser_of, g_of
from ctm.models.wrapper import Wrapper
from ctm.noise import match_dims
from ctm.parametrization import euler_update

__all__ = ["AtGuidance", "ClassifierFree", "Guided", "at_guidance", "at_scale", "image_of", "takes_guidance"]


def takes_guidance(model: Any) -> bool:
    """Whether the guidance scale is an input of the model, so that `at_guidance` sets it at no further cost."""
    return bool(getattr(model, "takes_guidance", False))


def at_guidance(model: Any, scale: float) -> AtGuidance:
    """The model at one guidance scale, for any sampler: `generate(at_guidance(model, 2.0), …)`.

    Raises ValueError where the scale is no input of the model (`takes_guidance`)."""
    return AtGuidance(model, scale)


def at_scale(model: Any, scale: float) -> AtGuidance | ClassifierFree:
    """The model under classifier-free guidance of this scale: by its own input where guidance was distilled into it, else by
    two evaluations. Raises ValueError for a model without classes."""
    if takes_guidance(model):
        return at_guidance(model, scale)
    if model.num_classes == 0:
        raise ValueError("--cfg needs a model with classes, and this one has none: leave it out")
    return ClassifierFree(model, scale)


class AtGuidance(Wrapper):
    """A model that takes the guidance scale as an input, at one: a model with `denoise` and `jump` as samplers call them.

    scale: a number, or (B,) where all calls are on the same B samples. Samples without a label are at 1. Raises ValueError
    where the scale is no input of the model."""

    def __init__(self, model: Any, scale: float | Tensor) -> None:
        if not takes_guidance(model):
            raise ValueError(
                f"this {type(model).__name__} does not take a guidance scale: train a TrajectoryModel whose network has "
                "guidance_embedding: true, as in the recipe digits-ctm-guided"
            )
        super().__init__(model)
        self.scale = scale if isinstance(scale, Tensor) and scale.dim() == 1 else as_number(scale, "the guidance scale")

    def denoise(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """D_w(x, t); shapes and errors as of `TrajectoryModel.denoise`."""
        return self.model.denoise(x, t, labels, guidance=self.scale)

    def g(self, x: Tensor, t: Tensor, s: Tensor, labels: Tensor | None = None) -> Tensor:
        """g of the jump at this scale; shapes and errors as of `TrajectoryModel.g`."""
        return self.model.g(x, t, s, labels, guidance=self.scale)

    def jump(self, x: Tensor, t: Tensor, s: Tensor, labels: Tensor | None = None) -> Tensor:
        """The jump along the guided flow; shapes and errors as of `TrajectoryModel.jump`."""
        return self.model.jump(x, t, s, labels, guidance=self.scale)


class Guided(Wrapper):
    """A guided model. A subclass gives `guided`: the denoised image where s is None, else g. `jump` is there where the model has
    one."""

    def denoise(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """The guided denoised image. x (B, *shape) at levels t (B,), labels int64 (B,) or None -> like x."""
        return self.guided(x, as_levels(t, as_state(x), zero=True), None, as_labels(labels, x))

    def jump(self, x: Tensor, t: Tensor, s: Tensor, labels: Tensor | None = None) -> Tensor:
        """The jump with the guided g. s (B,) ≤ t. Raises ValueError where the model has no jump."""
        if not hasattr(self.model, "jump"):
            raise ValueError(
                f"{type(self.model).__name__} has no jump, so it cannot be guided in one: use heun or another"
            )
        t, s = as_levels(t, as_state(x), zero=True), as_levels(s, x, "s", zero=True)
        return euler_update(x, self.guided(x, t, s, as_labels(labels, x)), t, s)

    def guided(self, x: Tensor, t: Tensor, s: Tensor | None, labels: Tensor | None) -> Tensor:
        """The guided denoised image where s is None, else the guided g(x, t, s)."""
        raise NotImplementedError

    def unguided(self, x: Tensor, t: Tensor, s: Tensor | None, labels: Tensor | None) -> Tensor:
        """What stands where guidance is switched off: the model's own, with the labels."""
        return image_of(self.model, x, t, s, labels)


def image_of(model: Any, x: Tensor, t: Tensor, s: Tensor | None, labels: Tensor | None) -> Tensor:
    """D(x, t) of a model where s is None, else its g(x, t, s)."""
    return denoiser_of(model, labels)(x, t) if s is None else g_of(model, x, t, s, labels)


class ClassifierFree(Guided):
    """D_w = D_∅ + w·(D_y − D_∅), both in one call of the model on 2B samples.

    scale: w, a number, or (B,) where all calls are on the same B samples. 0: no labels; 1: the conditional model; above 1:
    guided. For models trained with labels left out at times; a sample without a label has D_∅ for every w.
    Exact at w = 0 and 1, for jumps too. Else the guided D is none of a diffusion of any data (the powers of blurred densities
    are not the blurred power), and the same combination of g is what a jump makes of it. Raises ValueError for a model that
    says that it has no classes, and in a call without labels."""

    def __init__(self, model: Any, scale: float | Tensor) -> None:
        if getattr(model, "num_classes", None) == 0:
            raise ValueError(
                f"guidance is between a label and none, but this {type(model).__name__} knows no classes: give a "
                "conditional model"
            )
        super().__init__(model)
        self.scale = scale if isinstance(scale, Tensor) and scale.dim() == 1 else as_number(scale, "scale")

    def guided(self, x: Tensor, t: Tensor, s: Tensor | None, labels: Tensor | None) -> Tensor:
        if labels is None:
            raise ValueError("classifier-free guidance needs labels: give int64 (B,), −1 where a sample has none")
        one_scale = not isinstance(self.scale, Tensor)
        if one_scale and self.scale == 1:
            return self.unguided(x, t, s, labels)
        none = torch.full_like(labels, -1)
        if one_scale and self.scale == 0:
            return self.unguided(x, t, s, none)
        twice = None if s is None else torch.cat([s, s])
        both = image_of(self.model, torch.cat([x, x]), torch.cat([t, t]), twice, torch.cat([labels, none]))
        conditional, unconditional = both.chunk(2)
        scale = match_dims(self.scale.to(x), x) if isinstance(self.scale, Tensor) else self.scale
        return unconditional + scale * (conditional - unconditional)
