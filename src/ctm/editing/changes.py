"""Changes of a given image: remove noise, redraw from a level, interpolate, vary."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ctm.arguments import as_count, as_number, as_state, whole_numbers, words_for
from ctm.conditions import Condition, as_condition, rows, takes_labels
from ctm.guidance import BetweenLabels
from ctm.likelihood import decode, encode
from ctm.models.protocol import RangedDenoiser, denoiser_of
from ctm.noise import karras_grid, match_dims
from ctm.requests import Steps
from ctm.sampling import ancestral, gamma
from ctm.sampling.common import Callback
from ctm.sampling.generation import ImageNoise

__all__ = ["denoise", "interpolate", "posterior_sample", "spherical", "stroke", "stroking", "variations"]


def _level(model: RangedDenoiser, sigma: Any) -> float:
    """The level as a float. Raises ValueError for one that the model does not know."""
    sigma = as_number(sigma, "sigma")
    if not model.sigma_min < sigma <= model.sigma_max:
        raise ValueError(
            f"sigma must be above sigma_min = {model.sigma_min} and at most sigma_max = {model.sigma_max}, got {sigma:g}"
        )
    return sigma


@takes_labels
def denoise(model: RangedDenoiser, x: Tensor, sigma: float, condition: Condition = None) -> Tensor:
    """The mean of x0 given x = x0 + sigma·ε, in one evaluation: of all estimates the one of least squared error.

    x (B, *shape), sigma in the units of x. Raises ValueError for sigma outside the model's levels."""
    sigma = _level(model, sigma)
    with torch.no_grad():
        return denoiser_of(model, as_condition(condition, as_state(x)))(x, x.new_full((len(x),), sigma))


@takes_labels
def posterior_sample(
    model: RangedDenoiser,
    x: Tensor,
    sigma: float,
    *,
    steps: int = 64,
    condition: Condition = None,
    seed: int = 0,
    callback: Callback | None = None,
) -> Tensor:
    """A draw of x0 given x = x0 + sigma·ε, by the reverse diffusion from sigma (`ancestral`, `steps` evaluations): exact as the
    steps grow. The flow, and so a jump, would give one image of each x and not the spread of them."""
    sigma = _level(model, sigma)
    levels = karras_grid(steps, model.sigma_min, sigma, dtype=x.dtype)
    return ancestral(model, x, levels, condition=condition, noise=ImageNoise(seed, range(len(x))), callback=callback)


@takes_labels
def stroke(
    model: RangedDenoiser,
    image: Tensor,
    sigma: float,
    *,
    steps: int = 2,
    gamma_share: float = 0.0,
    condition: Condition = None,
    seed: int = 0,
    callback: Callback | None = None,
) -> Tensor:
    """Stroke to image (SDEdit, arXiv 2108.01073): noise of level sigma is laid over the image, then `steps` jumps of γ-sampling
    remove it. A larger sigma keeps less of the image; a larger γ forgets more on the way.

    image (B, *shape); image i's noise from (seed, i) alone. Raises ValueError for sigma outside the model's levels, gamma outside
    [0, 1], and a model without jump."""
    x, levels, noise = _strokes(model, image, sigma, steps, seed)
    return gamma(model, x, levels, gamma=gamma_share, condition=condition, noise=noise, callback=callback)


def stroking(
    model: RangedDenoiser,
    image: Tensor,
    sigma: float,
    *,
    steps: int = 2,
    gamma_share: float = 0.0,
    condition: Condition = None,
    seed: int = 0,
) -> Steps:
    """`stroke` as a generator of requests (`ctm.requests`), for a loop that drives many at once. The model is asked for its
    levels only. Raises ValueError as `stroke`, but for a model without jump."""
    x, levels, noise = _strokes(model, image, sigma, steps, seed)
    return gamma.steps(x, levels, gamma=gamma_share, condition=condition, noise=noise)


def _strokes(
    model: RangedDenoiser, image: Tensor, sigma: float, steps: int, seed: int
) -> tuple[Tensor, Tensor, ImageNoise]:
    """What `stroke` starts from: the image under noise, its levels, and the source of further noise."""
    sigma = _level(model, sigma)
    noise = ImageNoise(seed, range(len(as_state(image, "image"))))
    levels = karras_grid(steps, model.sigma_min, sigma, dtype=image.dtype)
    return image + sigma * noise(image), levels, noise


def spherical(a: Tensor, b: Tensor, share: Tensor) -> Tensor:
    """sin((1−w)Ω)/sin Ω·a + sin(wΩ)/sin Ω·b with Ω the angle between a and b, for each sample: a at w = 0, b at w = 1. Where
    they are parallel, the straight line. a, b (B, …), share w (B,)."""
    cosine = torch.nn.functional.cosine_similarity(a.flatten(1), b.flatten(1)).clamp(-1, 1)
    angle = cosine.arccos()
    sine = angle.sin()
    flat = sine < 1e-4
    safe = torch.where(flat, torch.ones_like(sine), sine)
    left = torch.where(flat, 1 - share, ((1 - share) * angle).sin() / safe)
    right = torch.where(flat, share, (share * angle).sin() / safe)
    return match_dims(left, a) * a + match_dims(right, a) * b


def _for_all(condition: Condition, num: int, like: Tensor) -> Condition:
    """The condition of one sample for num of them."""
    one = as_condition(condition, like[None])
    return None if one is None else rows(one, torch.zeros(num, dtype=torch.int64, device=like.device))


def _halves(
    progress: Callable[[float], object] | None,
) -> tuple[Callable[[float], object] | None, Callable[[float], object] | None]:
    """The callbacks of the way to noise, which is half of the whole, and of the way back."""
    if progress is None:
        return None, None
    return lambda share: progress(share / 2), lambda share: progress((1 + share) / 2)


def interpolate(
    model: RangedDenoiser,
    first: Tensor,
    second: Tensor,
    num: int,
    *,
    labels: tuple[int, int] | None = None,
    condition: Condition = None,
    rtol: float = 1e-4,
    atol: float = 1e-4,
    progress: Callable[[float], object] | None = None,
) -> Tensor:
    """num images from `first` to `second` (each of the model's shape): both go to noise along the flow, the noise moves on the
    sphere between them, and the flow brings each back. The ends are the given images, to the tolerances.

    labels: classes of both; on the way the denoiser is a mixture of theirs. condition: instead of labels, that of one sample,
    under which the whole way is. progress(share) is called with the share of the way done, in [0, 1]. Returns (num, *shape).
    Raises ValueError for num < 2, other shapes, and labels beside a condition."""
    num = as_count(num, "num", 2, why="an interpolation has its two ends")
    for image in (first, second):
        if not isinstance(image, Tensor) or not image.is_floating_point():
            raise ValueError(f"images must be floating-point tensors, got {words_for(image)}")
    if tuple(first.shape) != tuple(model.shape) or tuple(second.shape) != tuple(model.shape):
        raise ValueError(f"images must have shape {model.shape}, got {tuple(first.shape)} and {tuple(second.shape)}")
    if labels is not None and condition is not None:
        raise ValueError(
            "labels are the classes of both ends, and condition is that of the whole way: give one of them"
        )
    own = _for_all(condition, 2, first) if labels is None else whole_numbers(labels, 2).to(first.device)
    up, down = _halves(progress)
    ends = encode(model, torch.stack([first, second]), own, rtol=rtol, atol=atol, progress=up)
    share = torch.linspace(0, 1, num, dtype=first.dtype, device=first.device)
    z = spherical(ends[:1].expand(num, *model.shape), ends[1:].expand(num, *model.shape), share)
    if labels is None or not isinstance(own, Tensor):
        return decode(model, z, _for_all(condition, num, first), rtol=rtol, atol=atol, progress=down)
    mixed = BetweenLabels(model, own[1:].expand(num), share)
    return decode(mixed, z, own[:1].expand(num), rtol=rtol, atol=atol, progress=down)


def variations(
    model: RangedDenoiser,
    image: Tensor,
    num: int,
    amount: float,
    *,
    label: int | None = None,
    condition: Condition = None,
    seed: int = 0,
    rtol: float = 1e-4,
    atol: float = 1e-4,
    progress: Callable[[float], object] | None = None,
) -> Tensor:
    """num variations of an image of the model's shape: its noise z becomes cos θ·z + sin θ·ε with θ = amount·90°, and the flow
    brings that back. amount 0 is the image, 1 a fresh sample; where z is standard normal, so are all: of data drawn from the
    model, every variation is a draw from the model. label: the class of all; condition: instead of it, the condition of one
    sample. progress: as of `interpolate`. Returns (num, *shape). Raises ValueError for amount outside [0, 1], and a label beside
    a condition."""
    amount = as_number(amount, "amount", 0, 1, why="0 is the image itself, 1 a fresh sample")
    num = as_count(num, "num")
    if not isinstance(image, Tensor) or tuple(image.shape) != tuple(model.shape) or not image.is_floating_point():
        raise ValueError(
            f"the image must be a floating-point tensor of shape {tuple(model.shape)}, got {words_for(image)}"
        )
    if label is not None and condition is not None:
        raise ValueError("label is short for a condition of a class: give one of label and condition")
    one = _for_all(condition, 1, image) if label is None else whole_numbers(label, 1).to(image.device)
    up, down = _halves(progress)
    z = encode(model, image[None], one, rtol=rtol, atol=atol, progress=up).expand(num, *model.shape)
    angle = torch.tensor(amount * torch.pi / 2, dtype=torch.float64)
    turned = float(angle.cos()) * z + float(angle.sin()) * ImageNoise(seed, range(num))(z)
    return decode(model, turned, _for_all(one, num, image), rtol=rtol, atol=atol, progress=down)
