"""The names and shapes in a safetensors file, without its numbers."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError, safe_open

from ctm.foreign.kinds import what_file
from ctm.foreign.text import plain

__all__ = ["tensor_shapes"]

_LONGEST_HEADER = 16 << 20  # bytes: enough for 100,000 tensors


def tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Shape by name of each tensor in the file. The numbers are not read. It is checked that they are there, each once.

    Raises ValueError for a file that is no whole safetensors file."""
    with path.open("rb") as file:
        start = file.read(9)
    if len(start) < 9 or start[8:] != b"{":
        raise ValueError(f"{path} is no safetensors file: {what_file(path)}")
    length = int.from_bytes(start[:8], "little")
    if length > min(_LONGEST_HEADER, path.stat().st_size):
        raise ValueError(f"{path} is cut short or damaged: its header claims {length} bytes")
    try:
        with safe_open(path, framework="pt") as opened:
            return {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is cut short or damaged: {plain(str(error), 200)}") from error
