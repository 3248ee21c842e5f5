"""Counts what waits for the device: values read back from tensors, and places found where a mask is true."""

from __future__ import annotations

import traceback
from collections import Counter

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

_READERS = {"item", "tolist", "numpy", "cpu", "__bool__", "__float__", "__int__", "__index__", "__array__"}
_OPERATORS = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)


class Reads:
    """A context in which reads are counted, by the place in the package that made them. Reads of numbers that an optimiser of
    torch keeps on the CPU (its count of steps) and of host-side draws named in `host` do not count."""

    def __init__(self, *host: str) -> None:
        self.places: Counter[str] = Counter()
        self.host = (*host, "torch/optim")
        self._modes = (_Python(self), _Operators(self))
        self._inside = False

    @property
    def count(self) -> int:
        return sum(self.places.values())

    def found(self) -> None:
        frames = [f"{frame.filename}:{frame.name}" for frame in traceback.extract_stack()]
        if not any(name in frame for frame in frames for name in self.host):
            own = [frame for frame in frames if "/ctm/" in frame]
            self.places[own[-1].rpartition("/ctm/")[2] if own else "elsewhere"] += 1

    def __enter__(self) -> Reads:
        for mode in self._modes:
            mode.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        for mode in reversed(self._modes):
            mode.__exit__(*error)


class _Python(TorchFunctionMode):
    """Calls of methods: a list of all values at once never reaches an operator."""

    def __init__(self, reads: Reads) -> None:
        super().__init__()
        self.reads = reads

    def __torch_function__(self, func, types, args=(), kwargs=None):
        outermost = getattr(func, "__name__", "") in _READERS and not self.reads._inside
        if not outermost:
            return func(*args, **(kwargs or {}))
        self.reads.found()
        self.reads._inside = True
        try:
            return func(*args, **(kwargs or {}))
        finally:
            self.reads._inside = False


class _Operators(TorchDispatchMode):
    """Operators: what C++ reads for itself."""

    def __init__(self, reads: Reads) -> None:
        super().__init__()
        self.reads = reads

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        masked = func is torch.ops.aten.index.Tensor and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        if (masked or func in _OPERATORS) and not self.reads._inside:
            self.reads.found()
        return func(*args, **(kwargs or {}))


class Dtypes(TorchDispatchMode):
    """Collects the names of operators that made a float64 tensor on a device of that type."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device, self.double = device, set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor) and tensor.device.type == self.device and tensor.dtype == torch.float64:
                self.double.add(str(func))
        return result
