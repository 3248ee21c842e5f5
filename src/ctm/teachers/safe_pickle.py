"""EDM's network pickles read as data: a small stack machine that looks names up in a table and never imports or runs any."""

from __future__ import annotations

import io
import math
import mmap
import pickletools
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["Stored", "UnsafePickleError", "read_pickle"]

_VIEW_FROM = (
    4096  # bytes: longer pieces are views into the mapped file, so that no weight is copied before torch reads it
)
_LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # how torch.save began before its zip format
_DTYPES = (
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.int32,
    torch.int64,
    torch.uint8,
    torch.bool,
)
_NUMPY_KINDS = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1")


class UnsafePickleError(ValueError):
    """The file asks for something that a network's file does not need. It was refused; nothing in the file was run."""


@dataclass
class Stored:
    """An object of a class whose code came with the file: its class's name and its attributes. The code is not run."""

    class_name: str
    state: dict[str, Any] = field(default_factory=dict)


def read_pickle(path: str | Path) -> Any:
    """The contents of an EDM network pickle: dicts, lists, numbers, tensors on the CPU, and `Stored` objects.

    Nothing named in the file is imported or called: the few names such a file needs have stand-ins here, any other is
    refused. Weights are read once, from a map of the file. Raises UnsafePickleError for another name or operation,
    ValueError for a file that is empty, cut short or no pickle.
    """
    path = Path(path)
    with path.open("rb") as file:
        if file.read(1) != b"\x80":
            raise ValueError(f"{path} is empty or no pickle of protocol 2 or later: an EDM network file (.pkl) is one")
        source = _Bounded(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    try:
        return _Machine(path).run(pickletools.genops(source))  # type: ignore[arg-type]
    except (UnsafePickleError, _DamagedError) as error:
        raise type(error)(f"{path}: {error}") from error
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError, struct.error) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{path} is cut short or no pickle ({reason}): download or copy it again") from error


class _DamagedError(ValueError):
    """A pickle whose parts do not fit each other."""


class _Bounded:
    """The mapped file as a reader that refuses to read past the end and gives long pieces as views instead of copies."""

    def __init__(self, mapped: mmap.mmap) -> None:
        self._view, self._at = memoryview(mapped), 0

    def read(self, size: int) -> bytes | memoryview:
        if not 0 <= size <= len(self._view) - self._at:
            raise ValueError(f"it ends {size - (len(self._view) - self._at)} bytes too early")
        piece = self._view[self._at : self._at + size]
        self._at += size
        return piece if size > _VIEW_FROM else bytes(piece)

    def readline(self) -> bytes:
        """Up to and with the line's end, at most 1 KiB: only names are lines."""
        line = bytes(self._view[self._at : self._at + 1024])
        line = line[: line.find(b"\n") + 1]
        self._at += len(line)
        return line

    def tell(self) -> int:
        return self._at


@dataclass(frozen=True)
class _Name:
    """An admitted name on the stack."""

    path: str


@dataclass
class _Dtype:
    """Stands for a numpy.dtype of numbers."""

    kind: str


class _Mark:
    """The stack's MARK."""


_MARK = _Mark()


class _Machine:
    """Pickle's stack machine with the operations that build data, and no other."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self, operations: Iterator[tuple[Any, Any, int | None]]) -> Any:
        for operation, argument, position in operations:
            name = operation.name
            if name == "STOP":
                return self.stack.pop()
            if name in _PUSH_ARGUMENT:
                self.stack.append(argument)
            elif name in _PUSH_NEW:
                self.stack.append(_PUSH_NEW[name]())
            elif name in _ACT:
                _ACT[name](self, argument)
            elif name not in ("PROTO", "FRAME"):
                raise UnsafePickleError(
                    f"operation {name} at byte {position} is none that a network's file needs. Refused; nothing in it was run"
                )
        raise _DamagedError("it has no end")

    def pop_to_mark(self) -> list[Any]:
        items: list[Any] = []
        while (item := self.stack.pop()) is not _MARK:
            items.append(item)
        return items[::-1]

    def top(self, kind: type) -> Any:
        """The top of the stack, which must be of this kind exactly."""
        if type(self.stack[-1]) is not kind:
            raise _DamagedError(f"it treats a {type(self.stack[-1]).__name__} as a {kind.__name__}")
        return self.stack[-1]

    def tuple_of(self, count: int) -> None:
        parts = tuple(self.stack.pop() for _ in range(count))
        self.stack.append(parts[::-1])

    def extend(self, items: list[Any]) -> None:
        self.top(list).extend(items)

    def set_items(self, items: list[Any]) -> None:
        if len(items) % 2:
            raise _DamagedError("a dictionary in it has a key without a value")
        self.top(dict).update(zip(items[::2], items[1::2], strict=True))

    def add_items(self, items: list[Any]) -> None:
        self.top(set).update(items)

    def remember(self, index: int | None) -> None:
        self.memo[len(self.memo) if index is None else index] = self.stack[-1]

    def name(self, path: str) -> None:
        if path not in _CALLS:
            raise UnsafePickleError(
                f"it asks for {path[:200]}, which a network's file does not need. Refused; nothing in it was run"
            )
        self.stack.append(_Name(path))

    def stack_name(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        if type(name) is not str or type(module) is not str:
            raise _DamagedError("a name in it is no text")
        self.name(f"{module}.{name}")

    def call(self) -> None:
        """REDUCE and NEWOBJ: the stand-in of an admitted name."""
        arguments, named = self.stack.pop(), self.stack.pop()
        if type(named) is not _Name or type(arguments) is not tuple:
            raise UnsafePickleError(
                f"it calls a {type(named).__name__}, which is no admitted name. Refused; nothing in it was run"
            )
        self.stack.append(_CALLS[named.path](*arguments))

    def build(self) -> None:
        """BUILD: attributes of a stored container, byte order of a dtype; refused for all else."""
        state = self.stack.pop()
        built = self.stack[-1]
        if type(built) is Stored and type(state) is dict:
            built.state.update(state)
        elif type(built) is _Dtype and type(state) is tuple and len(state) > 1 and state[1] in ("<", "|", "="):
            return
        else:
            raise UnsafePickleError(
                f"it sets the state of a {type(built).__name__}, which a network's file does not need. "
                "Refused; nothing in it was run"
            )


_PUSH_ARGUMENT = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
_PUSH_ARGUMENT |= {"BINBYTES", "SHORT_BINBYTES", "BINBYTES8"}
_PUSH_NEW: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_SET": set,
    "MARK": lambda: _MARK,
}
_ACT: dict[str, Callable[[_Machine, Any], Any]] = {
    "POP": lambda machine, _: machine.stack.pop(),
    "POP_MARK": lambda machine, _: machine.pop_to_mark(),
    "TUPLE": lambda machine, _: machine.stack.append(tuple(machine.pop_to_mark())),
    "TUPLE1": lambda machine, _: machine.tuple_of(1),
    "TUPLE2": lambda machine, _: machine.tuple_of(2),
    "TUPLE3": lambda machine, _: machine.tuple_of(3),
    "APPEND": lambda machine, _: machine.extend([machine.stack.pop()]),
    "APPENDS": lambda machine, _: machine.extend(machine.pop_to_mark()),
    "SETITEM": lambda machine, _: machine.set_items([machine.stack.pop() for _ in range(2)][::-1]),
    "SETITEMS": lambda machine, _: machine.set_items(machine.pop_to_mark()),
    "ADDITEMS": lambda machine, _: machine.add_items(machine.pop_to_mark()),
    "BINPUT": lambda machine, index: machine.remember(index),
    "LONG_BINPUT": lambda machine, index: machine.remember(index),
    "MEMOIZE": lambda machine, _: machine.remember(None),
    "BINGET": lambda machine, index: machine.stack.append(machine.memo[index]),
    "LONG_BINGET": lambda machine, index: machine.stack.append(machine.memo[index]),
    "GLOBAL": lambda machine, path: machine.name(path.replace(" ", ".", 1)),
    "STACK_GLOBAL": lambda machine, _: machine.stack_name(),
    "REDUCE": lambda machine, _: machine.call(),
    "NEWOBJ": lambda machine, _: machine.call(),
    "BUILD": lambda machine, _: machine.build(),
}


def _object(meta: dict[str, Any]) -> Stored:
    """A persistent object of EDM: {type, version, module_src, class_name, state}. module_src, its code, is left alone."""
    state = meta["state"] if meta.get("state") is not None else {}
    if meta.get("type") != "class" or type(meta.get("class_name")) is not str or type(state) is not dict:
        raise _DamagedError("a stored object in it lacks its class name or its state")
    return Stored(meta["class_name"], state)


def _storage(data: bytes | memoryview) -> Any:
    """torch.storage._load_from_bytes, as torch.load with weights_only=True."""
    if bytes(data[: len(_LEGACY_MAGIC)]) != _LEGACY_MAGIC:
        raise UnsafePickleError(
            "a tensor's data in it is not in the form that torch writes there. Refused; nothing was run"
        )
    try:
        storage = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # torch's own refusals and damaged data are many kinds
        reason = str(error).split("\n")[0][:200]
        raise UnsafePickleError(
            f"a tensor's data in it was refused by torch's weights-only reader: {reason}"
        ) from error
    if not isinstance(storage, torch.storage.TypedStorage) or storage._untyped_storage.nbytes() > len(data):
        raise UnsafePickleError("a tensor's data in it is no storage of numbers. Refused; nothing was run")
    return storage


def _tensor(storage: Any, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *unused: Any) -> Tensor:
    """torch._utils._rebuild_tensor_v2, within the storage: no view larger than what the file holds."""
    whole = [type(n) is int and n >= 0 for n in (offset, *size, *stride)]
    if not isinstance(storage, torch.storage.TypedStorage) or storage.dtype not in _DTYPES or not all(whole):
        raise _DamagedError("a tensor in it is not made of numbers")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    held = storage._size()
    if math.prod(size) > held or (0 not in size and last >= held):
        raise _DamagedError(f"a tensor of shape {size} in it is larger than its data")
    return torch.empty(0, dtype=storage.dtype).set_(storage._untyped_storage, offset, size, stride)


def _parameter(data: Tensor, *unused: Any) -> Tensor:
    """torch._utils._rebuild_parameter, as the tensor alone."""
    if not isinstance(data, Tensor):
        raise _DamagedError("a parameter in it is no tensor")
    return data


def _dtype(kind: str, *unused: Any) -> _Dtype:
    if kind not in _NUMPY_KINDS:
        raise UnsafePickleError(f"it holds a numpy number of kind {str(kind)[:20]!r}. Refused; nothing in it was run")
    return _Dtype(kind)


def _scalar(dtype: _Dtype, data: bytes) -> float | int | bool:
    """A numpy number as Python's."""
    if type(dtype) is not _Dtype or type(data) is not bytes or len(data) != int(dtype.kind[1]):
        raise _DamagedError("a numpy number in it has the wrong length")
    return np.frombuffer(data, f"<{dtype.kind}")[0].item()


def _bytes(text: str, encoding: str) -> bytes:
    """_codecs.encode, with which pickles of protocol 2 write bytes."""
    if type(text) is not str or encoding != "latin1":
        raise UnsafePickleError("it encodes text otherwise than to bytes. Refused; nothing in it was run")
    return text.encode("latin1")


def _set(items: list[Any] | None = None) -> set[Any]:
    return set(items or [])


def _dictionary() -> dict[Any, Any]:
    return {}


def _module_dict() -> Stored:
    return Stored("ModuleDict")


_CALLS: dict[str, Callable[..., Any]] = {
    "torch_utils.persistence._reconstruct_persistent_obj": _object,
    "torch.storage._load_from_bytes": _storage,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch.nn.modules.container.ModuleDict": _module_dict,
    "collections.OrderedDict": _dictionary,
    "dnnlib.util.EasyDict": _dictionary,
    "builtins.set": _set,
    "__builtin__.set": _set,
    "numpy.dtype": _dtype,
    "numpy.core.multiarray.scalar": _scalar,
    "numpy._core.multiarray.scalar": _scalar,
    "_codecs.encode": _bytes,
}
