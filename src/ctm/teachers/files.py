"""The tensors of a foreign checkpoint file under the file's own names, and what else the file says of its network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from ctm.foreign.kinds import what_file
from ctm.foreign.text import plain, with_article
from ctm.teachers.official_edm2 import edm2_arguments
from ctm.teachers.safe_pickle import Stored, read_pickle
from ctm.teachers.torch_files import read_torch

__all__ = ["StateFile", "read_state"]

_LEGACY_TORCH = b"\x80\x02\x8a\nl\xfc\x9c"
_MOST_PARTS = 100_000  # modules, parameters and buffers: ten times as many as the largest networks have
_LONGEST_NAME = 1000
_WRAPPERS = ("module.", "_orig_mod.")  # what DistributedDataParallel and torch.compile put before names


@dataclass(frozen=True)
class StateFile:
    """tensors: by the file's own names. arguments: with which the network was made, if an EDM pickle stores them; else
    empty. notes: sentences that say what was found and chosen."""

    tensors: dict[str, Tensor]
    arguments: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def read_state(path: str | Path, part: str | None = None) -> StateFile:
    """The state of an EDM network pickle, or of a file that torch.save wrote. Nothing in the file is run.

    part: which state dict, if the file holds several (default: the average, then the target, then the model). Raises
    FileNotFoundError, and ValueError for a file that is neither, is cut short, is refused, or has no such part."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is no file: give a checkpoint (.pkl, .pt) or a model directory")
    with path.open("rb") as file:
        start = file.read(len(_LEGACY_TORCH))
    if start.startswith(b"PK") or start == _LEGACY_TORCH:
        return _choose(path, read_torch(path, mapped=True), part)
    if not start.startswith(b"\x80"):
        raise ValueError(
            f"{path} is neither an EDM pickle nor a file of torch.save ({what_file(path)}): "
            "give the checkpoint itself, downloaded whole"
        )
    return _edm_state(path, part)


def _choose(path: Path, contents: Any, part: str | None) -> StateFile:
    """The state of the file: the state dict itself, or one of several under names such as ema_0.999, target, model."""
    if not isinstance(contents, Mapping) or not contents:
        raise ValueError(f"{path} holds {with_article(type(contents).__name__)}, not a state dict: names with tensors")
    notes: list[str] = []
    if "pytorch-lightning_version" in contents:
        raise ValueError(
            f"{path} is a checkpoint of Lightning, which is not read here: save its network's state dict alone"
        )
    inside = {id(value): value for value in contents.values() if isinstance(value, Mapping)}  # each once
    with_tensors = {key for key, value in inside.items() if _tensors(value)}
    parts = {str(name): value for name, value in contents.items() if id(value) in with_tensors}
    if part is not None or (parts and not _tensors(contents)):
        if not parts:
            raise ValueError(f"{path} holds one state dict and no parts: leave --part away")
        chosen = part if part is not None else _preferred(parts)
        if chosen not in parts:
            raise ValueError(f"{path} has no part {chosen!r}: it holds {_listed(sorted(parts), 20)}")
        notes.append(f"read part {plain(chosen)!r} of {_listed(sorted(parts), 20)}")
        contents = parts[chosen]
    others = [str(name) for name, value in contents.items() if not isinstance(value, Tensor)]
    if others:
        raise ValueError(f"{path} is no state dict: {_listed(others)} in it are no tensors")
    tensors = {str(name): value for name, value in contents.items()}
    _check_size(path, tensors)
    for wrapper in _WRAPPERS:
        if all(name.startswith(wrapper) for name in tensors):
            tensors = {name.removeprefix(wrapper): value for name, value in tensors.items()}
            notes.append(f"left away {wrapper!r} before every name")
    return StateFile(tensors, {}, notes)


def _check_size(path: Path, tensors: Mapping[str, Tensor]) -> None:
    if sum(value.numel() * value.element_size() for value in tensors.values()) > path.stat().st_size:
        raise ValueError(f"{path} claims more numbers than it holds: its tensors overlap. A network's do not")


def _tensors(contents: Mapping[object, object]) -> bool:
    return any(isinstance(value, Tensor) for value in contents.values())


def _preferred(parts: Mapping[str, object]) -> str:
    """The name of the slowest average, else of the target, else of the model, else the first name."""
    averages = sorted(name for name in parts if name.startswith("ema"))
    named = [name for wanted in ("target", "model") for name in sorted(parts) if name.startswith(wanted)]
    return (averages[-1:] or named or sorted(parts))[0]


def _listed(names: list[Any], most: int = 4) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(plain(str(name)) for name in names[:most]) + more


def _edm_state(path: Path, part: str | None) -> StateFile:
    contents = read_pickle(path)
    chosen = part or "ema"
    if not isinstance(contents, dict) or not isinstance(contents.get(chosen), Stored):
        held = _listed(list(contents)) if isinstance(contents, dict) else f"a {type(contents).__name__}"
        raise ValueError(f"{path} is a pickle without EDM's network under {plain(chosen)!r}: it holds {held}")
    network: Stored = contents[chosen]
    kind, where = ("EDM2", "unet") if network.class_name == "Precond" else ("EDM", "model")
    inner = _child(network, where)
    if network.class_name not in ("EDMPrecond", "Precond") or inner is None:
        raise ValueError(
            f"{path} holds a {plain(network.class_name)} network; of EDM's files those of class EDMPrecond are read, and of "
            "EDM2's those of class Precond (VP, VE and iDDPM baselines scale their network otherwise)"
        )
    arguments = {**_keywords(network), **_keywords(inner), "model_type": inner.class_name}
    for name in ("img_resolution", "img_channels", "label_dim", "use_fp16", "sigma_min", "sigma_max", "sigma_data"):
        if isinstance(network.state.get(name), int | float):
            arguments[name] = network.state[name]
    modules = list(_walk(path, network))
    inside = [module for name, module in modules if name.startswith(f"{where}.") or name == where]
    arguments["head_channels"] = sorted({width for module in inside if (width := _head_channels(module))})
    if kind == "EDM2":
        blocks = [module.state for module in inside if module.class_name == "Block"]
        arguments["edm2"] = edm2_arguments(inner.state, blocks)
    tensors = {name: value for name, module in modules for name, value in _own_tensors(name, module)}
    _check_size(path, tensors)
    notes = [
        f"{path.name}: an {kind} pickle, {network.class_name} around {plain(inner.class_name)} (its code was not run)"
    ]
    encoder = contents.get("encoder")
    if isinstance(encoder, Stored) and encoder.class_name != "StandardRGBEncoder":
        arguments["encoder"] = plain(encoder.class_name, 60)
    return StateFile(tensors, arguments, notes)


def _child(module: Stored, name: str) -> Stored | None:
    child = _table(module, "_modules").get(name)
    return child if isinstance(child, Stored) else None


def _table(module: Stored, name: str) -> dict[Any, Any]:
    """One of a module's tables of parts by name; empty if the file has something else there."""
    table = module.state.get(name)
    return table if isinstance(table, dict) else {}


def _keywords(module: Stored) -> dict[str, object]:
    """The arguments with which a network was made, if they are one number or a few numbers. Others are not needed."""
    return {name: value for name, value in _table(module, "_init_kwargs").items() if _is_plain(value)}


def _is_plain(value: Any) -> bool:
    if type(value) in (list, tuple):
        return len(value) <= 32 and all(type(entry) in (int, float) and abs(entry) < 2**60 for entry in value)
    return type(value) in (bool, float) or (type(value) is int and abs(value) < 2**60)


def _head_channels(block: Stored) -> int | None:
    """Channels of one attention head of a block with attention, from the block's arguments or its state."""
    heads, width = block.state.get("num_heads"), block.state.get("out_channels")
    if type(heads) is int and type(width) is int and heads > 0 and width % heads == 0:
        return width // heads
    told = _keywords(block).get("channels_per_head")
    return told if heads is None and type(told) is int and told > 0 else None


def _own_tensors(name: str, module: Stored) -> Iterator[tuple[str, Tensor]]:
    passing = module.state.get("_non_persistent_buffers_set")
    left_out = passing if isinstance(passing, set) else ()
    for kind in ("_parameters", "_buffers"):
        for own, value in _table(module, kind).items():
            if isinstance(value, Tensor) and type(own) is str and own not in left_out:
                yield f"{name}.{own}" if name else own, value


def _walk(path: Path, module: Stored) -> Iterator[tuple[str, Stored]]:
    """The modules below, with dotted names, each object once, because a tree of modules has each once. Raises ValueError for
    a network with more parts, or longer names, than real networks have."""
    seen: set[int] = set()
    parts = 0
    waiting = [("", module)]
    while waiting:
        name, current = waiting.pop()
        if id(current) in seen:
            continue
        seen.add(id(current))
        yield name, current
        parts += sum(len(_table(current, kind)) for kind in ("_modules", "_parameters", "_buffers"))
        if parts > _MOST_PARTS or len(name) > _LONGEST_NAME:
            raise ValueError(
                f"{path} holds a network of more than {_MOST_PARTS} parts, or with names of more than {_LONGEST_NAME} letters: "
                "no network is like that"
            )
        children = _table(current, "_modules")
        below = [(f"{name}.{own}" if name else str(own), child) for own, child in children.items()]
        waiting += [(place, child) for place, child in reversed(below) if isinstance(child, Stored)]
