"""Numbers that a step reads back from the device: together, because each reading waits for it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["read_back"]


def read_back(numbers: Sequence[float | Tensor]) -> list[float]:
    """The numbers as floats, 0-dim tensors on one device among them read in one go. float32 keeps its value."""
    tensors = [number for number in numbers if isinstance(number, Tensor)]
    values = iter(torch.stack([tensor.detach().float() for tensor in tensors]).tolist() if tensors else [])
    return [next(values) if isinstance(number, Tensor) else float(number) for number in numbers]
