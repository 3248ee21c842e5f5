"""What every sampler shares: the step a callback sees, the way to cancel, and the checks on grid and state."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ctm.arguments import as_state, words_for

__all__ = [
    "Callback",
    "Cancelled",
    "Noise",
    "Step",
    "beyond_range",
    "check_start",
    "device_of",
    "fresh_noise",
    "level_values",
    "tensors_of",
    "usable_device",
]


class Cancelled(Exception):
    """Raised by a callback to stop a sampler; the sampler lets it through."""


@dataclass(frozen=True)
class Step:
    """What a callback receives after each step: its index from 0, the levels t → s it went between (0-dim tensors), the
    state x after it (at the grid's next level), and the denoised image where one was computed."""

    index: int
    t: Tensor
    s: Tensor
    x: Tensor
    denoised: Tensor | None


Callback = Callable[[Step], object]
Noise = Callable[[Tensor], Tensor]


def check_start(x: Tensor, grid: Tensor, *, zero_end: bool) -> Tensor:
    """The grid in x's dtype and on its device, checked: (N + 1,), strictly decreasing, positive but for an allowed final 0.

    Raises ValueError in sentences."""
    if not isinstance(grid, Tensor) or grid.dim() != 1 or len(grid) < 2:
        shape = tuple(grid.shape) if isinstance(grid, Tensor) else type(grid).__name__
        raise ValueError(f"grid must be a tensor of at least two noise levels, e.g. karras_grid(4), got {shape}")
    as_state(x)
    if not grid.is_floating_point():
        raise ValueError(f"grid must be a tensor of floating-point noise levels, got {grid.dtype}")
    if not bool(grid.isfinite().all()) or bool((grid[1:] >= grid[:-1]).any()):
        raise ValueError(
            f"grid must hold finite levels that decrease strictly, got {[round(v, 6) for v in grid.tolist()]}"
        )
    if float(grid[-1]) < 0 or (float(grid[-1]) == 0 and not zero_end):
        allowed = "or 0" if zero_end else "(jumps end at sigma_min, not at 0)"
        raise ValueError(f"the last level of the grid must be positive {allowed}, got {float(grid[-1])}")
    return grid.to(x)


def beyond_range(model: object, grid: Tensor) -> list[str]:
    """A line for each end of the grid that lies outside the noise levels which the model says it knows; none for a final 0,
    and none for a grid that `check_start` refuses."""
    if grid.dim() != 1 or len(grid) == 0 or not grid.is_floating_point() or not bool(grid.isfinite().all()):
        return []
    levels = [level for level in grid.tolist() if level > 0]
    low, high = getattr(model, "sigma_min", None), getattr(model, "sigma_max", None)
    lines = []
    if high is not None and levels and max(levels) > high * (1 + 1e-6):  # a grid may be rounded to float32
        lines.append(
            f"the grid starts at {max(levels):g}, above the model's sigma_max = {high:g}: it was not made for that"
        )
    if low is not None and levels and min(levels) < low * (1 - 1e-6):
        lines.append(
            f"the grid goes down to {min(levels):g}, below the model's sigma_min = {low:g}: it was not made for that"
        )
    return lines


def level_values(x: Tensor, grid: Tensor) -> list[float]:
    """The levels as numbers, rounded to x's precision as `check_start` rounds them. Read once, where the grid is."""
    return grid.to(x.dtype).tolist()


def tensors_of(model: object) -> list[Tensor]:
    """The parameters and buffers of a model, or of the model that a wrapper is around; none of a model without any."""
    found: list[Tensor] = []
    for name in ("parameters", "buffers"):
        listed = getattr(model, name, None)
        if callable(listed):
            found += listed()
    inner = getattr(model, "__dict__", {}).get("model")  # of a wrapper around something that is no module
    return found if found or inner is None else tensors_of(inner)


def device_of(model: object) -> torch.device:
    """Where a model's tensors are; the CPU for a model without any."""
    return next((tensor.device for tensor in tensors_of(model)), torch.device("cpu"))


def usable_device(device: torch.device | str, name: str = "device") -> torch.device:
    """The device, which computes. Raises ValueError for one that is not here, and for meta, which holds no numbers."""
    try:
        found = torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"{name} {device} cannot be used here ({reason}): leave it out, or give cpu") from error
    if found.type == "meta":
        raise ValueError(
            f"{name} meta holds shapes and no numbers, so nothing can be sampled there: leave it out, or give cpu"
        )
    return found


def fresh_noise(noise: Noise | None) -> Noise:
    """The caller's source of standard normal noise, or torch's. What a caller's gives is looked at, but for its numbers.

    Raises ValueError for what cannot be called, and in a call for anything but a tensor of x's shape, dtype and device."""
    if noise is None:
        return torch.randn_like
    if not callable(noise):
        raise ValueError(f"noise is a function, noise(x) -> standard normal like x, got {words_for(noise)}")

    def drawn(x: Tensor) -> Tensor:
        fresh = noise(x)
        wanted = (x.shape, x.dtype, x.device)
        if not isinstance(fresh, Tensor) or (fresh.shape, fresh.dtype, fresh.device) != wanted:
            got = f"{words_for(fresh)}{f' on {fresh.device}' if isinstance(fresh, Tensor) else ''}"
            raise ValueError(
                f"noise(x) must give a tensor like x, {x.dtype} of shape {tuple(x.shape)} on {x.device}, got {got}"
            )
        return fresh

    return drawn
