"""Images of which a part is known: what is measured, the estimate without a model, the ways to restore with a model, and the
score."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ctm.editing import LinearOperator, averaging, greying, masking, replace, solve_guided
from ctm.evaluation.scores import psnr
from ctm.models.protocol import RangedDenoiser
from ctm.objectives import LPIPS
from ctm.sampling.image_noise import image_generator

__all__ = ["METHODS", "TASKS", "Score", "Task", "make_tasks"]

TASKS = ("super-resolution", "inpainting", "colourisation")
_LOOKED_AT = 40
_MASK = 2**32  # the number of an image that no data set reaches: the mask's random numbers are its


@dataclass(frozen=True)
class Task:
    """operator: what is measured. plain: the name of the estimate without a model, and its images for a measurement y."""

    name: str
    operator: LinearOperator
    plain: str
    estimate: Callable[[Tensor], Tensor]


def make_tasks(names: list[str], shape: tuple[int, ...], factor: int, seed: int) -> list[Task]:
    """The tasks `names` for images (C, H, W). Inpainting is two tasks: a centre square of half the side, and a random half
    of the pixels, the same for all images.

    Raises ValueError for an unknown name, for a factor that leaves no pixel, and for colourisation of grey images."""
    channels, height, width = shape
    if not 2 <= factor <= min(height, width):
        raise ValueError(f"--factor must be from 2 to {min(height, width)}, the images' side, got {factor}")
    unknown = [name for name in names if name not in TASKS]
    if unknown or not names:
        raise ValueError(f"--tasks knows {', '.join(TASKS)}; not {', '.join(unknown) or 'an empty list'}")
    if "colourisation" in names and channels != 3:
        raise ValueError(f"colourisation needs a model of 3 channels, this one has {channels}: leave it out of --tasks")
    tasks = []
    if "super-resolution" in names:
        tasks.append(_enlarging((height, width), factor))
    if "inpainting" in names:
        centre = torch.ones(height, width, dtype=torch.bool)
        centre[height // 4 : height // 4 + height // 2, width // 4 : width // 4 + width // 2] = False
        order = torch.randperm(height * width, generator=image_generator(seed, _MASK, 0))
        half = (order < height * width // 2).reshape(height, width)
        tasks += [_filling("inpainting centre", centre), _filling("inpainting random half", half)]
    if "colourisation" in names:
        tasks.append(Task("colourisation", greying(), "grey", lambda y: y.expand(-1, 3, -1, -1)))
    return tasks


def _enlarging(sides: tuple[int, int], factor: int) -> Task:
    def bicubic(y: Tensor) -> Tensor:
        return interpolate(y, sides, mode="bicubic", align_corners=False, antialias=True)  # Pillow's cubic

    small = (sides[0] // factor, sides[1] // factor)
    return Task(f"super-resolution ×{factor}", averaging(sides, small), "bicubic", bicubic)


def _filling(name: str, known: Tensor) -> Task:
    def mean_fill(y: Tensor) -> Tensor:
        return torch.where(known, y, y.sum(dim=(2, 3), keepdim=True) / known.sum())

    return Task(name, masking(known), "mean fill", mean_fill)


@dataclass(frozen=True)
class Method:
    """restore(model, task, y, evaluations, seed) -> images. evaluations: the smallest number. jumps: whether the model must
    jump."""

    restore: Callable[[Any, Task, Tensor, int, int], Tensor]
    evaluations: int = 1
    jumps: bool = False


def _replacement(model: RangedDenoiser, task: Task, y: Tensor, evaluations: int, seed: int) -> Tensor:
    return replace(model, task.operator, y, steps=evaluations, guess=task.estimate(y), seed=seed)


def _guided(model: RangedDenoiser, task: Task, y: Tensor, evaluations: int, seed: int) -> Tensor:
    return solve_guided(model, task.operator, y, steps=evaluations, seed=seed)


def _guided_from(model: RangedDenoiser, task: Task, y: Tensor, evaluations: int, seed: int) -> Tensor:
    return solve_guided(model, task.operator, y, steps=evaluations, guess=task.estimate(y), seed=seed)


def _guided_jumps(model: RangedDenoiser, task: Task, y: Tensor, evaluations: int, seed: int) -> Tensor:
    return solve_guided(model, task.operator, y, steps=evaluations // 2, jumps=True, seed=seed)


METHODS = {
    "replacement": Method(_replacement, jumps=True),
    "guided": Method(_guided),
    "guided from baseline": Method(_guided_from),
    "guided jumps": Method(_guided_jumps, evaluations=2, jumps=True),
}


class Score:
    """Restored images compared with the true ones (B, C, H, W): means over the images with their standard errors.

    LPIPS is the shift-tolerant one over AlexNet, at 64 pixels for images up to 64, else 224. It uses the first 40 images,
    because it takes longer than the restoring. It is left out if its package is not installed."""

    def __init__(self, truth: Tensor) -> None:
        self.truth = truth
        side = 64 if max(truth.shape[2:]) <= 64 else 224
        self.perceptual = LPIPS(side, "alex") if importlib.util.find_spec("stlpips_pytorch") else None

    def psnr(self, made: Tensor) -> Tensor:
        """PSNR in dB of each image (B,), clamped to [−1, 1]. An error below the rounding to 8 bits, (2/255)²/12, counts as
        this error, 58.9 dB, so that a few images that are nearly known do not determine the mean."""
        mse = (made.clamp(-1, 1) - self.truth[: len(made)]).square().flatten(1).mean(dim=1)
        return psnr(mse.clamp(min=(2 / 255) ** 2 / 12))

    @torch.no_grad()
    def __call__(self, made: Tensor, plain: Tensor) -> dict[str, Any]:
        """psnr, lpips, and psnr_gain over the images `plain` of the same truth: each [mean, standard error]."""
        found = {"psnr": _mean(self.psnr(made)), "psnr_gain": _mean(self.psnr(made) - self.psnr(plain))}
        if self.perceptual is not None:
            found["lpips"] = _mean(self.perceptual(made[:_LOOKED_AT].clamp(-1, 1), self.truth[:_LOOKED_AT]))
        return found


def _mean(values: Tensor) -> list[float]:
    return [round(float(values.mean()), 4), round(float(values.std()) / math.sqrt(len(values)), 4)]
