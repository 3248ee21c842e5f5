"""From seeds to samples: every random number of image i comes from (seed, i) alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ctm.noise import karras_grid
from ctm.sampling.jumps import gamma as gamma_sampler
from ctm.tuned import tuned_for

__all__ = [
    "ImageNoise",
    "class_labels",
    "draw",
    "generate",
    "identities",
    "image_generator",
    "starting_noise",
    "stream",
]

NOISE, LABEL, DEQUANTISATION, PROBE = range(4)  # purposes of random numbers


def image_generator(seed: int, image: int, purpose: int) -> torch.Generator:
    """The CPU generator of image number `image` under `seed`, for one purpose: NOISE, LABEL, DEQUANTISATION or PROBE."""
    state = np.random.SeedSequence([seed, image, purpose]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state))


def identities(seed: int | Sequence[int], images: Sequence[int]) -> list[tuple[int, int]]:
    """(seed, image) that each of `images` takes its random numbers from: with one seed (seed, i); with a sequence of seeds,
    image i is number 0 of the i-th. Raises ValueError for a negative seed, or for fewer seeds than an image's number."""
    if isinstance(seed, int):
        if seed < 0:
            raise ValueError(f"seed must be at least 0, got {seed}")
        return [(seed, image) for image in images]
    seeds = [int(number) for number in seed]
    if any(number < 0 for number in seeds):
        raise ValueError(f"seeds must be at least 0, got {min(seeds)}")
    if images and max(images) >= len(seeds):
        raise ValueError(f"a sequence of seeds needs one for each image, got {len(seeds)} for {max(images) + 1} images")
    return [(seeds[image], 0) for image in images]


class ImageNoise:
    """A `noise` for samplers: row j of each draw comes from the generator of image indices[j]. Each call gives the next
    draw, standard normal, made in float32 on the CPU and then brought to the dtype and device of its argument."""

    def __init__(self, seed: int | Sequence[int], indices: Sequence[int]) -> None:
        self._generators = [image_generator(*who, NOISE) for who in identities(seed, indices)]

    def __call__(self, like: Tensor) -> Tensor:
        drawn = torch.empty(len(self._generators), *like.shape[1:])
        for row, generator in zip(drawn, self._generators, strict=True):
            row.normal_(generator=generator)
        return drawn.to(like)


def starting_noise(shape: Sequence[int], indices: Sequence[int], seed: int = 0) -> Tensor:
    """The first draw, ε with x_T = sigma_max·ε, of the images `indices`: float32 (len(indices), *shape) on the CPU."""
    return ImageNoise(seed, indices)(torch.empty(len(indices), *shape))


def class_labels(
    model: Any, num: int, labels: int | Tensor | None = None, seed: int | Sequence[int] = 0
) -> Tensor | None:
    """The label of each of num images: the given ones, or one class for all, or where None and the model is conditional
    a class drawn for each image from (seed, i); None for an unconditional model.

    Returns int64 (num,) or None. Raises ValueError for a label the model does not know or another number of labels."""
    known_classes = getattr(model, "num_classes", None)  # None: a model that does not say
    classes = int(known_classes or 0)
    who = identities(seed, range(num))
    if labels is None:
        if classes == 0:
            return None
        drawn = [torch.randint(classes, (), generator=image_generator(*pair, LABEL)).item() for pair in who]
        return torch.tensor(drawn, dtype=torch.int64)
    chosen = torch.as_tensor(labels)
    if chosen.is_floating_point() or chosen.dtype == torch.bool:
        raise ValueError(f"labels must be whole numbers (int64), got {chosen.dtype}")
    chosen = chosen.to(device="cpu", dtype=torch.int64)
    chosen = chosen.expand(num) if chosen.dim() == 0 else chosen
    if chosen.shape != (num,):
        raise ValueError(
            f"labels must be one int or {num} of them, one for each image, got shape {tuple(chosen.shape)}"
        )
    too_large = known_classes is not None and num > 0 and int(chosen.max()) >= classes
    if num and (too_large or int(chosen.min()) < -1):
        bad = int(chosen.max()) if too_large else int(chosen.min())
        known = f"0 … {classes - 1}, or −1 for none" if classes else "none, the model is unconditional"
        raise ValueError(f"label {bad} is not known to this model (classes: {known})")
    return chosen


def draw(
    model: Any,
    indices: Sequence[int],
    *,
    levels: Tensor,
    sampler: Callable[..., Tensor],
    labels: Tensor | None,
    seed: int | Sequence[int],
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """The images number `indices` of those that `generate` makes: dtype (len(indices), *shape) on `device`, not clamped.

    levels: the grid; sampler: f(model, x, grid, labels=, noise=) -> x; labels int64 (len(indices),) or None; the model on
    `device` already."""
    noise = ImageNoise(seed, indices)
    with torch.no_grad():
        like = torch.empty(len(indices), *model.shape, device=device, dtype=dtype)
        x = levels[0].to(like) * noise(like)
        rows = None if labels is None else labels.to(device)
        return sampler(model, x, levels, labels=rows, noise=noise).to(dtype)


def stream(
    model: Any,
    num: int,
    *,
    steps: int = 1,
    gamma: float | None = None,
    labels: int | Tensor | None = None,
    seed: int | Sequence[int] = 0,
    batch_size: int = 64,
    device: torch.device | str | None = None,
    grid: Tensor | None = None,
    sampler: Callable[..., Tensor] | None = None,
    dtype: torch.dtype = torch.float32,
    start: int = 0,
) -> Iterator[Tensor]:
    """What `generate` returns, in batches (on the CPU) in the order of the images. Arguments as there; they are checked
    when `stream` is called, before the first batch is asked for.

    sampler: f(model, x, grid, labels=, noise=) -> x instead of γ-sampling, e.g. ctm.sampling.heun with a grid. start: number
    of the first image to make, 0 … num, to go on with what was interrupted; a multiple of batch_size keeps the batches.
    """
    if num < 1 or batch_size < 1:
        raise ValueError(f"num and batch_size must be at least 1, got {num} and {batch_size}")
    if not 0 <= start <= num:
        raise ValueError(f"start must be in 0 … num = {num}, got {start}")
    if grid is not None and not isinstance(grid, Tensor):
        raise ValueError(f"grid must be a tensor of noise levels, e.g. karras_grid(4), got {type(grid).__name__}")
    chosen = class_labels(model, num, labels, seed)
    sigma_min, sigma_max = (
        getattr(model, name, default) for name, default in (("sigma_min", 0.002), ("sigma_max", 80.0))
    )
    tuned = tuned_for(model, steps, gamma) if grid is None and sampler is None else None
    gamma = gamma if gamma is not None else 0.0 if tuned is None else tuned.gamma
    if tuned is not None:
        levels = tuned.grid(dtype)
    else:
        levels = karras_grid(steps, sigma_min, sigma_max, dtype=dtype) if grid is None else grid
    if sampler is None:
        if not hasattr(model, "jump"):
            raise ValueError(
                f"{type(model).__name__} has no jump, only denoise: give sampler=ctm.sampling.heun and a grid, or a CTM"
            )
        if not 0 <= gamma <= 1:
            raise ValueError(
                f"gamma must be in [0, 1], got {gamma}: 0 jumps deterministically, 1 is consistency-model multistep"
            )
    place = torch.device(device) if device is not None else _device_of(model)
    if isinstance(model, torch.nn.Module) and device is not None:
        model = model.to(place)

    method = sampler or partial(gamma_sampler, gamma=gamma)

    def batches() -> Iterator[Tensor]:
        for first in range(start, num, batch_size):
            indices = range(first, min(first + batch_size, num))
            rows = None if chosen is None else chosen[first : first + batch_size]
            x = draw(model, indices, levels=levels, sampler=method, labels=rows, seed=seed, device=place, dtype=dtype)
            yield x.cpu()

    return batches()


def generate(
    model: Any,
    num: int,
    *,
    steps: int = 1,
    gamma: float | None = None,
    labels: int | Tensor | None = None,
    seed: int | Sequence[int] = 0,
    batch_size: int = 64,
    device: torch.device | str | None = None,
    grid: Tensor | None = None,
    sampler: Callable[..., Tensor] | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """num samples by γ-sampling with `steps` jumps: float32 (num, *model.shape) on the CPU, not clamped.

    labels: None, an int, or int64 (num,) with −1 = unconditional; None on a conditional model draws a class for each image.
    seed: image i depends on (seed, i) alone, its noise drawn in float32 on the CPU (x_T first, then one draw for each step
    that adds noise): the same bits whatever the batch, device or order, and pixels equal to 1e-4.
    device: where to compute, None for where the model is. grid: levels instead of karras_grid(steps) between the model's
    sigma_max and sigma_min. gamma: in [0, 1], None for 0. Where the model keeps a grid for so many steps (`tune_grid`) and
    neither grid nor another γ is given, its levels and its γ are used. sampler: see `stream`. A sequence of num seeds makes
    image i number 0 of the i-th seed.
    dtype: of the state and the result; the network computes in its weights' own. float64 shows what rounding does.
    Raises ValueError for arguments out of range.
    """
    return torch.cat(
        list(
            stream(
                model,
                num,
                steps=steps,
                gamma=gamma,
                labels=labels,
                seed=seed,
                batch_size=batch_size,
                device=device,
                grid=grid,
                sampler=sampler,
                dtype=dtype,
            )
        )
    )


def _device_of(model: Any) -> torch.device:
    """Where the model's tensors are; the CPU for a model without any."""
    if isinstance(model, torch.nn.Module):
        for tensor in (*model.parameters(), *model.buffers()):
            return tensor.device
    return torch.device("cpu")
