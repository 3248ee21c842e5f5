"""A guided teacher for objectives: the scale as the student's input, and the teacher at that scale."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ctm.conditions import GUIDANCE, Condition, with_field
from ctm.models.guided import AtGuidance, ClassifierFree
from ctm.models.protocol import Denoiser, Diffusion
from ctm.objectives.base import Networks

__all__ = ["at_scales", "check_guided", "check_range", "draw_scales", "guided_by"]

Range = tuple[float, float]


def check_range(guidance: Sequence[float]) -> None:
    """Raises ValueError unless guidance is [low, high] with 0 ≤ low ≤ high, finite."""
    low, high = guidance
    if not 0 <= low <= high < math.inf:
        raise ValueError(f"guidance must be [low, high] with 0 ≤ low ≤ high, got {list(guidance)}")


def check_guided(student: Diffusion, teacher: Denoiser | None) -> None:
    """Raises ValueError where the scale is no input of the student, or the teacher has no classes."""
    AtGuidance(student, 1.0)
    if teacher is not None:
        ClassifierFree(teacher, 1.0)


def draw_scales(guidance: Range | None, like: Tensor, generator: torch.Generator) -> Tensor | None:
    """Scales (B,) for a batch like `like` (B, …), uniform in the range; None where there is none."""
    if guidance is None:
        return None
    low, high = guidance
    return low + (high - low) * torch.rand(len(like), generator=generator).to(like)


def at_scales(condition: Condition, scales: Tensor | None) -> Condition:
    """The condition of B samples as a student that takes the scale gets it: with the scales (B,) as its field."""
    return condition if scales is None else with_field(condition, GUIDANCE, scales)


def guided_by(networks: Networks, scales: Tensor | None) -> Networks:
    """The networks with the teacher guided at the scales (B,) of the B samples (classifier-free guidance, arXiv 2207.12598)."""
    if scales is None or networks.teacher is None:
        return networks
    return replace(networks, teacher=ClassifierFree(networks.teacher, scales))
