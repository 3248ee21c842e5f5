"""Pickle's stack machine as a reader of data. Names are looked up in a table and never imported, and its work is bounded."""

from __future__ import annotations

import mmap
import pickletools
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ctm.foreign.text import plain

__all__ = ["DamagedError", "Machine", "Name", "Source", "Stored", "UnsafePickleError", "map_file", "sentences"]

MOST_OPERATIONS = 500_000  # the largest networks that are read need about a quarter of it
_COPIES = 4  # bytes of a tensor are text, bytes and numbers in a pickle of protocol 2
_VIEW_FROM = 4096  # bytes: longer pieces are views into the mapped file, so that no weight is copied before it is used
_KEY_LIMIT = 1 << 60  # whole numbers below it have hashes of their own
REFUSED = "Refused; nothing in it was run"


class UnsafePickleError(ValueError):
    """The file asks for something that a network's file does not need. The file was refused, and nothing in it was run."""


class DamagedError(ValueError):
    """A pickle whose parts do not fit each other."""


class sentences:
    """Inside the block, errors from reading a damaged file become ValueErrors whose sentences name the file. kind: what the
    file may not be at all."""

    def __init__(self, path: Path, kind: str) -> None:
        self.path, self.kind = path, kind

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, UnsafePickleError | DamagedError):
            raise type(error)(f"{self.path}: {error}") from error
        damaged = (ValueError, TypeError, LookupError, AttributeError, OverflowError, struct.error, RuntimeError)
        if isinstance(error, damaged):
            reason = plain(str(error), 200)
            raise ValueError(
                f"{self.path} is cut short or {self.kind} ({reason}): download or copy it again"
            ) from error


@dataclass
class Stored:
    """An object whose class came with the file: the class's name and the object's attributes. The code is not run."""

    class_name: str
    state: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Name:
    """An allowed name on the stack."""

    path: str


class _Mark:
    """The stack's MARK."""


_MARK = _Mark()


def map_file(path: Path) -> memoryview:
    """The file as memory; parts are read from the disk when they are used. Raises ValueError for an empty file."""
    with path.open("rb") as file:
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


class Source:
    """Bytes as a reader. It refuses to read past the end, and gives long pieces as views, not copies."""

    def __init__(self, view: memoryview) -> None:
        self._view, self._at = view, 0

    def read(self, size: int) -> bytes | memoryview:
        if not 0 <= size <= len(self._view) - self._at:
            raise ValueError(f"it ends {size - (len(self._view) - self._at)} bytes too early")
        piece = self._view[self._at : self._at + size]
        self._at += size
        return piece if size > _VIEW_FROM else bytes(piece)

    def readline(self) -> bytes:
        """The bytes up to and with the line's end, at most 1 KiB: only names are lines."""
        line = bytes(self._view[self._at : self._at + 1024])
        line = line[: line.find(b"\n") + 1]
        self._at += len(line)
        return line

    def tell(self) -> int:
        return self._at

    def __len__(self) -> int:
        return len(self._view)


class Machine:
    """Pickle's stack machine with the operations that build data, and no others.

    calls: the names that a file may ask for, each with its stand-in; None: it may be named and not called. persistent: what
    a persistent id stands for; None: refused. attributes: whether dictionaries may be given attributes, which are left out
    (`_metadata` of a state dict). Its work is bounded by the source's length: keys are plain, so hashing one costs its
    length. What an operation copies is counted, and at most four times the source may be copied."""

    def __init__(
        self,
        source: Source,
        calls: Mapping[str, Callable[..., Any] | None],
        persistent: Callable[[Any], Any] | None = None,
        attributes: bool = False,
    ) -> None:
        self.source, self.calls, self.persistent, self.attributes = source, calls, persistent, attributes
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.left = _COPIES * len(source)

    def run(self) -> Any:
        """The next pickle in the source. Raises UnsafePickleError, DamagedError, and what damaged data makes Python raise."""
        self.stack, self.memo = [], {}
        for number, (operation, argument, position) in enumerate(pickletools.genops(self.source)):  # type: ignore[arg-type]
            name = operation.name
            if name == "STOP":
                return self.stack.pop()
            if name in _PUSH_ARGUMENT:
                self.stack.append(argument)
            elif name in _PUSH_NEW:
                self.stack.append(_PUSH_NEW[name]())
            elif name in _ACT and (name != "BINPERSID" or self.persistent is not None):
                _ACT[name](self, argument)
            elif name not in ("PROTO", "FRAME"):
                raise UnsafePickleError(
                    f"operation {name} at byte {position} is none that a network's file needs. {REFUSED}"
                )
            if number >= MOST_OPERATIONS:
                raise UnsafePickleError(f"it has more than {MOST_OPERATIONS} operations. {REFUSED}")
        raise DamagedError("it has no end")

    def charge(self, count: int) -> None:
        """Count a copy of so many bytes or items that are in the source once."""
        self.left -= count
        if self.left < 0:
            raise UnsafePickleError(f"it repeats its parts until they are larger than the file. {REFUSED}")

    def pop_to_mark(self) -> list[Any]:
        items: list[Any] = []
        while (item := self.stack.pop()) is not _MARK:
            items.append(item)
        return items[::-1]

    def top(self, kind: type) -> Any:
        """The top of the stack. It must be of exactly this kind."""
        if type(self.stack[-1]) is not kind:
            raise DamagedError(f"it treats a {type(self.stack[-1]).__name__} as a {kind.__name__}")
        return self.stack[-1]

    def tuple_of(self, count: int) -> None:
        parts = tuple(self.stack.pop() for _ in range(count))
        self.stack.append(parts[::-1])

    def extend(self, items: list[Any]) -> None:
        self.top(list).extend(items)

    def set_items(self, items: list[Any]) -> None:
        if len(items) % 2:
            raise DamagedError("a dictionary in it has a key without a value")
        self.top(dict).update(zip(self.keys(items[::2]), items[1::2], strict=True))

    def add_items(self, items: list[Any]) -> None:
        self.top(set).update(self.keys(items))

    def keys(self, keys: list[Any]) -> list[Any]:
        """The keys themselves. Each must be plain, so that hashing and comparing are bounded by its length."""
        for key in keys:
            if type(key) in (str, bytes):
                self.charge(len(key))
            elif not (key is None or type(key) is bool or (type(key) is int and abs(key) < _KEY_LIMIT)):
                raise UnsafePickleError(
                    f"a {'large int' if type(key) is int else type(key).__name__} in it is a key or a set's member; a network's "
                    f"file has text and small numbers there. {REFUSED}"
                )
        return keys

    def remember(self, index: int | None) -> None:
        self.memo[len(self.memo) if index is None else index] = self.stack[-1]

    def name(self, path: str) -> None:
        if path not in self.calls:
            raise UnsafePickleError(f"it asks for {plain(path, 200)}, which a network's file does not need. {REFUSED}")
        self.stack.append(Name(path))

    def stack_name(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        if type(name) is not str or type(module) is not str:
            raise DamagedError("a name in it is no text")
        self.name(f"{module}.{name}")

    def call(self) -> None:
        """REDUCE and NEWOBJ: call the stand-in of an allowed name."""
        arguments, named = self.stack.pop(), self.stack.pop()
        if type(named) is not Name or type(arguments) is not tuple:
            raise UnsafePickleError(f"it calls a {type(named).__name__}, which is no admitted name. {REFUSED}")
        stand_in = self.calls[named.path]
        if stand_in is None or len(arguments) > 16:
            raise UnsafePickleError(f"it calls {named.path} in a way that a network's file does not need. {REFUSED}")
        self.stack.append(stand_in(*arguments))

    def refer(self) -> None:
        """BINPERSID: push what a persistent id stands for."""
        assert self.persistent is not None
        self.stack.append(self.persistent(self.stack.pop()))

    def build(self) -> None:
        """BUILD: give an object its state, if its stand-in takes one. Anything else is refused."""
        state, built = self.stack.pop(), self.stack[-1]
        if type(built) is Stored and type(state) is dict:
            self.charge(len(state))
            built.state.update(state)
        elif not (
            (self.attributes and type(built) is dict and type(state) is dict)
            or (hasattr(built, "takes_state") and built.takes_state(state))
        ):
            raise UnsafePickleError(
                f"it sets the state of a {type(built).__name__}, which a network's file does not need. {REFUSED}"
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
_ACT: dict[str, Callable[[Machine, Any], Any]] = {
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
    "BINPERSID": lambda machine, _: machine.refer(),
    "BUILD": lambda machine, _: machine.build(),
}
