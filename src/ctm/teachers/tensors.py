"""Tensors of a foreign file: storages of numbers, views that stay inside them, and torch's form before its zip files."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ctm.teachers.stack_machine import REFUSED, DamagedError, Machine, Name, Source, UnsafePickleError

__all__ = ["STORAGES", "Storage", "Tensors", "read_legacy", "torch_calls"]

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_MOST_AXES = 16
_SHARED = 8  # how many times over the tensors of one file may share its numbers, all of them together
STORAGES: dict[str, torch.dtype] = {
    "torch.FloatStorage": torch.float32,
    "torch.DoubleStorage": torch.float64,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
}


@dataclass
class Storage:
    """`count` numbers of one type. data: their bytes, None until they are known."""

    dtype: torch.dtype
    count: int
    data: torch.UntypedStorage | None = None

    @property
    def size(self) -> int:
        return self.count * self.dtype.itemsize


class Tensors:
    """The tensors of one file. They are empty while the file is read; `fill` gives them their numbers."""

    def __init__(self) -> None:
        self._waiting: list[tuple[Tensor, Storage, int, tuple[int, ...], tuple[int, ...]]] = []
        self._claimed = 0

    def rebuild(self, storage: Any, offset: Any, size: Any, stride: Any, *unused: Any) -> Tensor:
        """The stand-in of torch._utils._rebuild_tensor_v2: a view within the storage, no larger than what the file holds."""
        if type(size) is not tuple or type(stride) is not tuple or not len(size) == len(stride) <= _MOST_AXES:
            raise DamagedError("a tensor in it has no size")
        if not all(type(n) is int and 0 <= n < 1 << 62 for n in (offset, *size, *stride)):
            raise DamagedError("a tensor in it has a size that is no whole number")
        if type(storage) is not Storage:
            raise DamagedError("a tensor in it is not made of numbers")
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        count = math.prod(size)
        if count > storage.count or (count and last >= storage.count):
            raise DamagedError(
                f"it claims more numbers than it holds: a tensor of shape {size} is larger than its data of {storage.count}"
            )
        tensor = torch.empty(0, dtype=storage.dtype)
        self._waiting.append((tensor, storage, offset, size, stride))
        self._claimed += count * storage.dtype.itemsize
        return tensor

    def fill(self, size: int) -> None:
        """Give every tensor its numbers. size: of the file. The tensors together may not exceed it many times."""
        if self._claimed > _SHARED * size:
            raise DamagedError("it claims more numbers than it holds: its tensors overlap")
        for tensor, storage, offset, shape, stride in self._waiting:
            assert storage.data is not None
            tensor.set_(storage.data, offset, shape, stride)


def parameter(data: object, *unused: Any) -> Tensor:
    """The stand-in of torch._utils._rebuild_parameter: the tensor itself."""
    if not isinstance(data, Tensor):
        raise DamagedError("a parameter in it is no tensor")
    return data


def torch_calls(tensors: Tensors) -> dict[str, Callable[..., object] | None]:
    """The names that a file of torch.save with tensors, numbers and texts needs, with their stand-ins."""
    names: dict[str, Callable[..., object] | None] = dict.fromkeys(STORAGES)
    return names | {
        "torch._utils._rebuild_tensor_v2": tensors.rebuild,
        "torch._utils._rebuild_parameter": parameter,
        "collections.OrderedDict": dict,
    }


def stored_numbers(identity: object, parts: int) -> tuple[str, Storage]:
    """(key, storage) of a persistent id of torch: ("storage", type, key, place, count, …), with that number of parts."""
    if type(identity) is not tuple or len(identity) != parts or identity[0] != "storage":
        raise DamagedError("a tensor's data in it is no storage of numbers")
    kind, key, count = identity[1], identity[2], identity[4]
    if type(kind) is not Name or STORAGES.get(kind.path) is None or type(key) is not str or len(key) > 200:
        raise DamagedError("a tensor's data in it is no storage of numbers")
    if type(count) is not int or not 0 <= count < 1 << 60:
        raise DamagedError("a storage in it has a size that is no whole number")
    return key, Storage(STORAGES[kind.path], count)


def read_legacy(source: Source, tensors: Tensors, calls: Mapping[str, Callable[..., object] | None]) -> Any:
    """The object in a file that torch wrote before its zip files: a magic number, a version, sizes of C's types, the object,
    and the storages' bytes.

    The caller fills the tensors. Raises as `Machine.run`."""
    storages: dict[str, Storage] = {}

    def persistent(identity: Any) -> Storage:
        key, storage = stored_numbers(identity, 6)
        if identity[5] is not None:
            raise UnsafePickleError(f"a storage in it is a part of another one, as torch before 0.4 wrote. {REFUSED}")
        if storages.setdefault(key, storage) != storage:
            raise DamagedError("a storage in it has two sizes")
        return storages[key]

    machine = Machine(source, calls, persistent, attributes=True)
    magic, version, _ = machine.run(), machine.run(), machine.run()
    if type(magic) is not int or magic != _LEGACY_MAGIC or version != _LEGACY_PROTOCOL:
        raise UnsafePickleError(f"a tensor's data in it is not in the form that torch writes there. {REFUSED}")
    contents, keys = machine.run(), machine.run()
    if type(keys) is not list or not all(type(key) is str for key in keys) or sorted(keys) != sorted(storages):
        raise DamagedError("its storages are not those that it lists")
    for key in keys:
        storage = storages[key]
        count = int.from_bytes(source.read(8), "little")
        if count != storage.count:
            raise DamagedError("a storage in it has two sizes")
        storage.data = aligned(source.read(storage.size))
    return contents


def aligned(piece: bytes | memoryview) -> torch.UntypedStorage:
    """A copy of the bytes at an address where torch may compute with them."""
    if not len(piece):
        return torch.UntypedStorage(0)
    copy = torch.empty(len(piece), dtype=torch.uint8)
    copy.numpy()[:] = np.frombuffer(piece, np.uint8)
    return copy.untyped_storage()
