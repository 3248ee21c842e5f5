"""From seeds to samples: every random number of image i comes from (seed, i) alone."""

from __future__ import annotations

import copy
import logging
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from ctm.arguments import as_count, as_float_type, whole_numbers, words_for
from ctm.conditions import Condition, as_condition, condition_named, rows, takes_labels, to
from ctm.models.grids import tuned_for
from ctm.models.protocol import Denoiser, can_jump
from ctm.noise import karras_grid
from ctm.sampling.common import beyond_range, device_of, tensors_of, usable_device
from ctm.sampling.image_noise import LABEL, NoiseStream, as_noise_stream, identities, image_generator, noise_of
from ctm.sampling.jumps import as_gamma
from ctm.sampling.jumps import gamma as gamma_sampler
from ctm.sampling.marking import Marks
from ctm.scaling import restored

__all__ = [
    "class_labels",
    "conditions_for",
    "draw",
    "generate",
    "stream",
]

T = TypeVar("T")
_LOG = logging.getLogger(__name__)


def class_labels(
    model: object, num: int, labels: int | Tensor | None = None, seed: int | Sequence[int] = 0
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
        drawn = [torch.randint(classes, (1,), generator=image_generator(*pair, LABEL)) for pair in who]
        return drawn[0] if num == 1 else torch.cat([torch.empty(0, dtype=torch.int64), *drawn])
    chosen = whole_numbers(labels, num).cpu()
    too_large = known_classes is not None and num > 0 and int(chosen.max()) >= classes
    if num and (too_large or int(chosen.min()) < -1):
        bad = int(chosen.max()) if too_large else int(chosen.min())
        known = f"0 … {classes - 1}, or −1 for none" if classes else "none, the model is unconditional"
        raise ValueError(f"label {bad} is not known to this model (classes: {known})")
    return chosen


def conditions_for(
    model: object, num: int, condition: int | Condition = None, seed: int | Sequence[int] = 0
) -> Condition:
    """The condition of num images, on the CPU: the given mapping as the model takes it, else their labels (`class_labels`).
    Raises ValueError for what the model does not take."""
    if not isinstance(condition, Mapping):
        return class_labels(model, num, condition, seed)
    conditioner = getattr(model, "conditioner", None)
    like = torch.empty(num)
    return as_condition(condition, like) if conditioner is None else conditioner.check(condition, like)


def copy_on(model: T, device: torch.device) -> T:
    """The model itself where all of it is on `device`, else a copy of it there, so that the caller's stays as it is: mode,
    gradients, hooks and place. It takes the memory of the weights on `device` and none elsewhere.

    Raises ValueError for a model that cannot be copied."""
    tensors = tensors_of(model)
    if all(tensor.device == device for tensor in tensors):
        return model
    there: dict[int, object] = {}
    for tensor in tensors:
        moved = tensor.detach().to(device)
        there[id(tensor)] = torch.nn.Parameter(moved, tensor.requires_grad) if _is_parameter(tensor) else moved
    try:
        return copy.deepcopy(model, there)
    except (TypeError, RuntimeError, pickle.PicklingError) as error:
        raise ValueError(
            f"this {type(model).__name__} cannot be copied to {device} ({error}): bring it there yourself, "
            f"model.to({str(device)!r}), and leave device out"
        ) from error


def _is_parameter(tensor: Tensor) -> bool:
    return isinstance(tensor, torch.nn.Parameter)


@takes_labels
def draw(
    model: Denoiser,
    indices: Sequence[int],
    *,
    levels: Tensor,
    sampler: Callable[..., Tensor],
    condition: Condition,
    seed: int | Sequence[int],
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    marks: Marks | None = None,
    noise_stream: NoiseStream = "v1",
) -> Tensor:
    """The images number `indices` of those that `generate` makes: dtype (len(indices), *shape) on `device`, not clamped.

    levels: the grid; sampler: f(model, x, grid, condition=, noise=) -> x; condition: of those images, or None; the model on
    `device` already. marks: the watermarks of those images. noise_stream: as of `generate`."""
    noise = noise_of(noise_stream, seed, indices, marks)
    sampler = condition_named(sampler)
    with torch.no_grad():
        like = torch.empty(len(indices), *model.shape, device=device, dtype=dtype)
        x = levels[0].to(like) * noise(like)
        made = sampler(model, x, levels, condition=to(condition, device), noise=noise)
    if not isinstance(made, Tensor) or made.shape != x.shape:
        raise ValueError(
            f"the sampler must give the state at the end, of shape {tuple(x.shape)}, got {words_for(made)}"
        )
    return made.to(dtype)


def _check_shape(model: object) -> None:
    """Raises ValueError for a model that does not say which shape a sample of it has."""
    try:
        shape = tuple(model.shape)  # type: ignore[attr-defined]
    except (AttributeError, TypeError):
        shape = None
    if shape is None or not all(isinstance(side, int) and side > 0 for side in shape):
        raise ValueError(
            f"{words_for(model)} does not say the shape of a sample: give it shape, a tuple such as (3, 32, 32), besides "
            "denoise(x, t, condition), or call a sampler with noise of your own"
        )


def _check_seeds(seed: int | Sequence[int], num: int) -> None:
    """Raises ValueError for a sequence of another number of seeds than images: the rest would be left out."""
    several = hasattr(seed, "__len__") and not isinstance(seed, str | bytes) and getattr(seed, "shape", None) != ()
    if several and len(seed) != num:  # type: ignore[arg-type]
        raise ValueError(f"a sequence of seeds needs one for each image, got {len(seed)} for {num} images")  # type: ignore[arg-type]


def _levels(
    model: object, steps: int | None, gamma: float | None, grid: Tensor | None, dtype: torch.dtype, *, tunable: bool
) -> tuple[Tensor, float]:
    """(levels, γ): the given grid, else the one tuned for the model and `steps` (None: 1), else Karras'. tunable: whether the
    sampler is the one that grids are tuned for. Raises ValueError for steps, γ or a grid that cannot be, and for both."""
    if grid is not None and not isinstance(grid, Tensor):
        raise ValueError(f"grid must be a tensor of noise levels, e.g. karras_grid(4), got {type(grid).__name__}")
    if grid is not None:
        if grid.dim() != 1 or len(grid) < 2:
            raise ValueError(f"grid must hold at least two noise levels, (N + 1,), got shape {tuple(grid.shape)}")
        if steps is not None:
            raise ValueError(f"grid gives the {len(grid)} levels themselves: leave steps out, got {words_for(steps)}")
        for line in beyond_range(model, grid):
            _LOG.warning("%s", line)
        return grid, as_gamma(0.0 if gamma is None else gamma)
    steps = as_count(1 if steps is None else steps, "steps", why="a grid needs one interval or more")
    tuned = tuned_for(model, steps, gamma) if tunable else None
    if tuned is not None:
        return tuned.grid(dtype), tuned.gamma
    low, high = getattr(model, "sigma_min", 0.002), getattr(model, "sigma_max", 80.0)
    return karras_grid(steps, low, high, dtype=dtype), as_gamma(0.0 if gamma is None else gamma)


@takes_labels
def stream(
    model: Denoiser,
    num: int,
    *,
    steps: int | None = None,
    gamma: float | None = None,
    condition: int | Condition = None,
    seed: int | Sequence[int] = 0,
    batch_size: int = 64,
    device: torch.device | str | None = None,
    grid: Tensor | None = None,
    sampler: Callable[..., Tensor] | None = None,
    dtype: torch.dtype = torch.float32,
    watermark: tuple[bytes, bytes | Sequence[bytes]] | None = None,
    noise_stream: NoiseStream = "v1",
    start: int = 0,
) -> Iterator[Tensor]:
    """What `generate` returns, in batches (on the CPU) in the order of the images. Arguments as there; they are checked
    when `stream` is called, before the first batch is asked for.

    sampler: f(model, x, grid, condition=, noise=) -> x instead of γ-sampling, e.g. ctm.sampling.heun with a grid. start: number
    of the first image to make, 0 … num, to go on with what was interrupted; a multiple of batch_size keeps the batches.
    """
    num, batch_size, start = as_count(num, "num"), as_count(batch_size, "batch_size"), as_count(start, "start", 0)
    if start > num:
        raise ValueError(f"start must be in 0 … num = {num}, got {start}")
    dtype = as_float_type(dtype)
    _check_shape(model)
    _check_seeds(seed, num)
    if sampler is not None and gamma is not None:
        _LOG.warning("gamma %g is not used: it belongs to γ-sampling, and another sampler is given", as_gamma(gamma))
    chosen, marks = conditions_for(model, num, condition, seed), Marks.of(watermark, num)
    levels, gamma = _levels(model, steps, gamma, grid, dtype, tunable=sampler is None)
    if sampler is None and not can_jump(model):
        raise ValueError(
            f"{type(model).__name__} has no jump, only denoise: give sampler=ctm.sampling.heun and a grid, or a CTM"
        )
    if sampler is not None and not callable(sampler):
        raise ValueError(f"sampler is a function such as ctm.sampling.heun, got {words_for(sampler)}")
    if marks is not None and sampler is None:
        marks.warn_of_fresh_noise(gamma, levels.numel() - 1)
    place = usable_device(device_of(model) if device is None else device)
    model = model if device is None else copy_on(model, place)
    method = sampler or partial(gamma_sampler, gamma=gamma)
    make = partial(draw, model, levels=levels, sampler=method, seed=seed, device=place, dtype=dtype)
    make = partial(make, noise_stream=as_noise_stream(noise_stream))

    def batches() -> Iterator[Tensor]:
        for first in range(start, num, batch_size):
            indices = range(first, min(first + batch_size, num))
            own = rows(chosen, slice(first, first + batch_size))
            made = make(indices, condition=own, marks=None if marks is None else marks.of_images(indices))
            yield restored(model, made.cpu())

    return batches()


@takes_labels
def generate(
    model: Denoiser,
    num: int,
    *,
    steps: int | None = None,
    gamma: float | None = None,
    condition: int | Condition = None,
    seed: int | Sequence[int] = 0,
    batch_size: int = 64,
    device: torch.device | str | None = None,
    grid: Tensor | None = None,
    sampler: Callable[..., Tensor] | None = None,
    dtype: torch.dtype = torch.float32,
    watermark: tuple[bytes, bytes | Sequence[bytes]] | None = None,
    noise_stream: NoiseStream = "v1",
) -> Tensor:
    """num samples by γ-sampling with `steps` jumps (None: 1): float32 (num, *model.shape) on the CPU, not clamped.
    A model that keeps the scaling of its data (`ctm.scaling`) gives samples in the numbers of the data.

    condition: labels, an int or int64 (num,) with −1 for none; or a mapping of fields, each (num, …), or without its first
    dimension where it is the same for all. None on a model of classes draws a class for each image, from (seed, i).
    seed: image i depends on (seed, i) alone, its noise drawn in float32 on the CPU (x_T first, then one draw for each step
    that adds noise): the same bits whatever the batch, device or order, and pixels equal to 1e-4.
    device: where to compute, None for where the model is; elsewhere a copy of the model computes, and the model stays where and
    as it is. grid: levels instead of karras_grid(steps) between the model's sigma_max and sigma_min; steps is then left out.
    gamma: in [0, 1], None for 0. Where the model keeps a grid for so many steps (`tune_grid`) and neither grid nor another γ is
    given, its levels and its γ are used. sampler: see `stream`. A sequence of num seeds makes image i number 0 of the i-th seed.
    dtype: of the state and the result; the network computes in its weights' own. float64 shows what rounding does.
    watermark: (key, nonces), to take the signs of x_T from `ctm.keystream` and only the magnitudes from (seed, i): see
    `ctm.provenance`. nonces: one for each image, or one alone for a single image.
    noise_stream: how (seed, i) becomes noise. "v1" draws on the CPU by a generator for each image. "v2" computes the noise of all
    images at once where the model computes, by a counter (`ctm.philox`): other images, the same on every device to 1e-4.
    Raises ValueError for arguments out of range, and for steps beside a grid.
    """
    return torch.cat(
        list(
            stream(
                model,
                num,
                steps=steps,
                gamma=gamma,
                condition=condition,
                seed=seed,
                batch_size=batch_size,
                device=device,
                grid=grid,
                sampler=sampler,
                dtype=dtype,
                watermark=watermark,
                noise_stream=noise_stream,
            )
        )
    )
