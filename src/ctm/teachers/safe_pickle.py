"""EDM's network pickles read as data. The names that they need have stand-ins; nothing is imported or run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ctm.foreign.text import plain
from ctm.teachers.stack_machine import (
    REFUSED,
    DamagedError,
    Machine,
    Name,
    Source,
    Stored,
    UnsafePickleError,
    map_file,
    sentences,
)
from ctm.teachers.tensors import Storage, Tensors, parameter, read_legacy, torch_calls

__all__ = ["Stored", "UnsafePickleError", "read_pickle"]

_NUMPY_KINDS = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1")
_LEGACY_START = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # how torch.save began before its zip format


def read_pickle(path: str | Path) -> Any:
    """The contents of an EDM network pickle: dicts, lists, numbers, tensors on the CPU, and `Stored` objects.

    Nothing that the file names is imported or called. The few names that such a file needs have stand-ins here; any other
    name is refused. Time and memory grow at most in proportion to the file's size. Weights are read once, from a map of the
    file. Raises UnsafePickleError for another name or operation, ValueError for a file that is empty, cut short or no
    pickle."""
    path = Path(path)
    with path.open("rb") as file:
        if file.read(1) != b"\x80":
            raise ValueError(f"{path} is empty or no pickle of protocol 2 or later: an EDM network file (.pkl) is one")
    with sentences(path, "no pickle"):
        source = Source(map_file(path))
        return _Reader(source).contents()


@dataclass
class _Dtype:
    """The stand-in of a numpy.dtype of numbers."""

    kind: str

    def takes_state(self, state: object) -> bool:
        """Take the byte order and similar state, as numpy sets it."""
        return type(state) is tuple and len(state) > 1 and state[1] in ("<", "|", "=")


class _Array:
    """The stand-in of a numpy array, of which nothing is kept: EDM2's encoders hold some."""

    def takes_state(self, state: object) -> bool:
        """Whether this is what numpy sets: version, shape, dtype, order, data."""
        return type(state) is tuple and len(state) == 5 and type(state[2]) is _Dtype and type(state[4]) is bytes


class _Reader:
    """The stand-ins of the names in one file, and its tensors."""

    def __init__(self, source: Source) -> None:
        self.source, self.tensors = source, Tensors()
        calls: dict[str, Callable[..., object] | None] = {
            "torch_utils.persistence._reconstruct_persistent_obj": _object,
            "torch.storage._load_from_bytes": self.storage,
            "torch._utils._rebuild_tensor_v2": self.tensors.rebuild,
            "torch._utils._rebuild_parameter": parameter,
            "torch.nn.modules.container.ModuleDict": _module_dict,
            "collections.OrderedDict": _dictionary,
            "dnnlib.util.EasyDict": _dictionary,
            "builtins.set": self.set_of,
            "__builtin__.set": self.set_of,
            "numpy.dtype": _dtype,
            "numpy.core.multiarray.scalar": _scalar,
            "numpy._core.multiarray.scalar": _scalar,
            "numpy.core.multiarray._reconstruct": _array,
            "numpy._core.multiarray._reconstruct": _array,
            "numpy.ndarray": None,
            "_codecs.encode": self.encode,
        }
        self.machine = Machine(source, calls)

    def contents(self) -> Any:
        contents = self.machine.run()
        self.tensors.fill(len(self.source))
        return contents

    def storage(self, data: object) -> Storage:
        """The stand-in of torch.storage._load_from_bytes: one storage, in torch's form before its zip files."""
        if not isinstance(data, bytes | memoryview) or bytes(data[: len(_LEGACY_START)]) != _LEGACY_START:
            raise UnsafePickleError(f"a tensor's data in it is not in the form that torch writes there. {REFUSED}")
        self.machine.charge(len(data))
        inner = Tensors()
        contents = read_legacy(Source(memoryview(data)), inner, torch_calls(inner))
        if type(contents) is not Storage:
            raise UnsafePickleError(f"a tensor's data in it is no storage of numbers. {REFUSED}")
        return contents

    def encode(self, text: object, encoding: object) -> bytes:
        """The stand-in of _codecs.encode, with which pickles of protocol 2 write bytes."""
        if type(text) is not str or encoding != "latin1":
            raise UnsafePickleError(f"it encodes text otherwise than to bytes. {REFUSED}")
        self.machine.charge(len(text))
        return text.encode("latin1")

    def set_of(self, items: Any = ()) -> set[object]:
        if type(items) not in (list, tuple):
            raise DamagedError("a set in it is made of something else than a list")
        self.machine.charge(len(items))
        return set(self.machine.keys(items))


def _object(meta: Any) -> Stored:
    """The stand-in of a persistent object of EDM: {type, version, module_src, class_name, state}. module_src, its code, is
    not used."""
    state = meta["state"] if meta.get("state") is not None else {}
    if meta.get("type") != "class" or type(meta.get("class_name")) is not str or type(state) is not dict:
        raise DamagedError("a stored object in it lacks its class name or its state")
    return Stored(meta["class_name"], state)


def _dtype(kind: object, *unused: Any) -> _Dtype:
    if type(kind) is not str or kind not in _NUMPY_KINDS:
        raise UnsafePickleError(f"it holds a numpy number of kind {plain(kind, 20)!r}. {REFUSED}")
    return _Dtype(kind)


def _scalar(dtype: object, data: object) -> float | int | bool:
    """A numpy number as a Python number."""
    if type(dtype) is not _Dtype or type(data) is not bytes or len(data) != int(dtype.kind[1]):
        raise DamagedError("a numpy number in it has the wrong length")
    return np.frombuffer(data, f"<{dtype.kind}")[0].item()


def _array(kind: object, shape: object, letter: object) -> _Array:
    """The stand-in of numpy's _reconstruct, which makes an empty array that then gets its state."""
    if type(kind) is not Name or kind.path != "numpy.ndarray":
        raise UnsafePickleError(f"it makes an array of another kind than numpy.ndarray. {REFUSED}")
    return _Array()


def _dictionary() -> dict[object, object]:
    return {}


def _module_dict() -> Stored:
    return Stored("ModuleDict")
