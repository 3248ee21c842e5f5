"""Decoded pictures as they stand in the cache: read if they are whole, and written so that a power cut leaves them whole."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np

from ctm.data.files import TRAITS
from ctm.data.mapped import watched
from ctm.data.notes import tell
from ctm.files import write_file

__all__ = ["read_kept", "write_traits"]


def read_kept(pixels: Path, traits: Path, count: int) -> tuple[np.ndarray, Counter[str]] | None:
    """(pixels uint8 (count, H, W, C), memory-mapped; how many pictures were treated how, by the keys of TRAITS), or None where
    the files are not there, or are damaged. A line says so then: the pictures are decoded again."""
    if not (pixels.is_file() and traits.is_file()):
        return None
    try:
        found = np.load(pixels, mmap_mode="r", allow_pickle=False)
        counts = json.loads(traits.read_text(encoding="utf-8"))
    except (OSError, ValueError, EOFError, RecursionError):
        found, counts = np.empty(0), None
    known = isinstance(counts, dict) and all(name in TRAITS and type(number) is int for name, number in counts.items())
    if not known or found.dtype != np.uint8 or found.ndim != 4 or len(found) != count:
        tell([f"the decoded pictures in {pixels} are damaged: decoded again"])
        return None
    return watched(found, pixels), Counter[str](counts)


def write_traits(file: Path, traits: Counter[str]) -> None:
    """Write how many pictures were treated how, and sync it to the disk: before it has its name it must be whole there."""
    write_file(file, json.dumps(traits).encode())
