"""What all sums over a stream have in common."""

from __future__ import annotations

from torch import Tensor, float64
from torch import zeros as torch_zeros

__all__ = ["Sums", "zeros"]


def zeros(*shape: int) -> Tensor:
    """A sum at its start: float64, on the CPU."""
    return torch_zeros(*shape, dtype=float64)


class Sums:
    """Tensors that add. The merged sums of several processes or sessions are the sums of the whole stream."""

    def tensors(self) -> dict[str, Tensor]:
        """The sums by name; the tensors themselves, not copies."""
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}

    def merge(self, others: dict[str, Tensor]) -> None:
        """Add the `tensors()` of other sums to these."""
        for name, mine in self.tensors().items():
            mine += others[name]
