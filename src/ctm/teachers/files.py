"""The tensors of a foreign checkpoint file, under the names they have there, with what else the file says of its network."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ctm.teachers.safe_pickle import Stored, read_pickle

__all__ = ["StateFile", "read_state"]

_LEGACY_TORCH = b"\x80\x02\x8a\nl\xfc\x9c"
_WRAPPERS = ("module.", "_orig_mod.")  # what DistributedDataParallel and torch.compile put before names


@dataclass(frozen=True)
class StateFile:
    """tensors: by the file's own names. arguments: what an EDM pickle stores of how its network was made, else empty.
    notes: sentences on what was found and chosen."""

    tensors: dict[str, Tensor]
    arguments: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def read_state(path: str | Path, part: str | None = None) -> StateFile:
    """The state of an EDM network pickle, or of a file that torch.save wrote. Nothing in the file is run.

    part: which state dict, where the file holds several (default: the average, then the target, then the model).
    Raises FileNotFoundError, and ValueError for a file that is neither, cut short, refused, or without such a part.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is no file: give a checkpoint (.pkl, .pt) or a model directory")
    with path.open("rb") as file:
        start = file.read(len(_LEGACY_TORCH))
    if start.startswith(b"PK") or start == _LEGACY_TORCH:
        return _torch_state(path, part, mapped=start.startswith(b"PK"))
    if not start.startswith(b"\x80"):
        raise ValueError(
            f"{path} is neither an EDM pickle nor a file of torch.save ({_looks_like(start)}): "
            "give the checkpoint itself, downloaded whole"
        )
    return _edm_state(path, part)


def _looks_like(start: bytes) -> str:
    if not start:
        return "it is empty"
    if start.lstrip()[:1] in (b"<", b"{"):
        return "it begins like a web page or a text"
    return f"it begins with the bytes {start.hex(' ')}"


def _torch_state(path: Path, part: str | None, *, mapped: bool) -> StateFile:
    """A state dict written by torch.save, through torch's weights-only reader; of a zip file the weights stay mapped."""
    try:
        contents = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # damaged files and refusals are many kinds
        reason = " ".join(str(error).split())
        named = re.search(r"GLOBAL ([\w.]+)", reason)
        if named:
            raise ValueError(
                f"{path} asks for {named[1]}, which a state dict does not need. Refused by torch's weights-only reader; "
                "nothing in it was run"
            ) from error
        raise ValueError(f"{path} is cut short or damaged ({reason[:200]}): download or copy it again") from error
    return _choose(path, contents, part)


def _choose(path: Path, contents: Any, part: str | None) -> StateFile:
    """The state dict itself, or one of several under names such as ema_0.999, target, model."""
    if not isinstance(contents, Mapping) or not contents:
        raise ValueError(f"{path} holds a {type(contents).__name__}, not a state dict: names with tensors")
    notes: list[str] = []
    parts = {str(k): v for k, v in contents.items() if isinstance(v, Mapping) and _tensors(v)}
    if part is not None or (parts and not _tensors(contents)):
        if not parts:
            raise ValueError(f"{path} holds one state dict and no parts: leave --part away")
        chosen = part if part is not None else _preferred(parts)
        if chosen not in parts:
            raise ValueError(f"{path} has no part {chosen!r}: it holds {', '.join(sorted(parts))}")
        notes.append(f"read part {chosen!r} of {', '.join(sorted(parts))}")
        contents = parts[chosen]
    others = [str(name) for name, value in contents.items() if not isinstance(value, Tensor)]
    if others:
        raise ValueError(f"{path} is no state dict: {_listed(others)} in it are no tensors")
    tensors = {str(name): value for name, value in contents.items()}
    if sum(value.numel() * value.element_size() for value in tensors.values()) > path.stat().st_size:
        raise ValueError(f"{path} claims more numbers than it holds: its tensors overlap. A network's do not")
    for wrapper in _WRAPPERS:
        if all(name.startswith(wrapper) for name in tensors):
            tensors = {name.removeprefix(wrapper): value for name, value in tensors.items()}
            notes.append(f"left away {wrapper!r} before every name")
    return StateFile(tensors, {}, notes)


def _tensors(contents: Mapping[Any, Any]) -> bool:
    return any(isinstance(value, Tensor) for value in contents.values())


def _preferred(parts: Mapping[str, Any]) -> str:
    """The slowest average, else the target, else the model, else the first."""
    averages = sorted(name for name in parts if name.startswith("ema"))
    named = [name for wanted in ("target", "model") for name in sorted(parts) if name.startswith(wanted)]
    return (averages[-1:] or named or sorted(parts))[0]


def _listed(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _edm_state(path: Path, part: str | None) -> StateFile:
    contents = read_pickle(path)
    chosen = part or "ema"
    if not isinstance(contents, dict) or not isinstance(contents.get(chosen), Stored):
        held = ", ".join(map(str, contents)) if isinstance(contents, dict) else f"a {type(contents).__name__}"
        raise ValueError(f"{path} is a pickle without EDM's network under {chosen!r}: it holds {held[:200]}")
    network: Stored = contents[chosen]
    inner = _child(network, "model")
    if network.class_name != "EDMPrecond" or inner is None:
        raise ValueError(
            f"{path} holds a {network.class_name} network; of EDM's files those of class EDMPrecond are read "
            "(VP, VE and iDDPM baselines scale their network otherwise)"
        )
    state = network.state
    arguments = {**_keywords(network), **_keywords(inner), "model_type": inner.class_name}
    for name in ("img_resolution", "img_channels", "label_dim", "use_fp16", "sigma_min", "sigma_max", "sigma_data"):
        if isinstance(state.get(name), int | float):
            arguments[name] = state[name]
    arguments["head_channels"] = sorted({width for _, module in _walk(inner) if (width := _head_channels(module))})
    tensors = {
        f"{name}.{own}": value
        for name, module in _walk(network)
        for kind in ("_parameters", "_buffers")
        for own, value in (module.state.get(kind) or {}).items()
        if isinstance(value, Tensor) and own not in (module.state.get("_non_persistent_buffers_set") or ())
    }
    notes = [f"{path.name}: an EDM pickle, {network.class_name} around {inner.class_name} (its code was not run)"]
    return StateFile(tensors, arguments, notes)


def _child(module: Stored, name: str) -> Stored | None:
    found = (module.state.get("_modules") or {}).get(name)
    return found if isinstance(found, Stored) else None


def _keywords(module: Stored) -> dict[str, Any]:
    given = module.state.get("_init_kwargs")
    return dict(given) if isinstance(given, dict) else {}


def _head_channels(block: Stored) -> int | None:
    """Channels of one attention head of a block that attends, from what it was made with or has become."""
    heads, width = block.state.get("num_heads"), block.state.get("out_channels")
    if type(heads) is int and type(width) is int and heads > 0 and width % heads == 0:
        return width // heads
    told = _keywords(block).get("channels_per_head")
    return told if heads is None and type(told) is int and told > 0 else None


def _walk(module: Stored) -> Iterator[tuple[str, Stored]]:
    """The modules below, with dotted names, each object once: a tree of modules has no more."""
    seen: set[int] = set()
    waiting = [("", module)]
    while waiting:
        name, current = waiting.pop()
        if id(current) in seen:
            continue
        seen.add(id(current))
        yield name, current
        children = current.state.get("_modules") or {}
        below = [(f"{name}.{own}" if name else str(own), child) for own, child in children.items()]
        waiting += [(path, child) for path, child in reversed(below) if isinstance(child, Stored)]
