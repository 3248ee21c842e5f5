"""A digest of a data set's content. A run compares it to know whether the data are still the same."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ctm.data.base import Dataset
from ctm.data.mapped import check_unchanged

__all__ = ["LIMIT", "DataDigest", "digest_of"]

LIMIT = 4_000_000_000  # bytes of pixels; beyond it the files' names, sizes and times and a few pictures stand for all
_BLOCK, _ROWS = 1 << 24, 1024
_PICTURES = 16  # of a set beyond the limit, evenly spread: they tell one array or column of a file from another
_CONTENT = "pixels, labels and class names"
_FILES = f"names, sizes and times of the files, {_PICTURES} pictures, shape, labels and class names"


@dataclass(frozen=True)
class DataDigest:
    """value: SHA-256 in hexadecimal digits. of: what it was computed from, in words."""

    value: str
    of: str

    @property
    def whole(self) -> bool:
        """Whether every pixel is part of the digest."""
        return self.of == _CONTENT


def digest_of(images: Dataset, limit: int = LIMIT) -> DataDigest:
    """The digest of a set, equal on all machines: of its pixels, labels and class names in their order.

    If the set has more than `limit` bytes of pixels and comes from a file or folder, the files' names, sizes and times and
    16 of its pictures stand for the pixels. Reading everything would take minutes at each start. A set that comes from no
    file is always read whole."""
    source = Path(images.name)
    whole = images.nbytes <= limit or not images.name or not source.exists()
    digest = hashlib.sha256()
    kind = [] if images.scaling is None else [str(images.stored.dtype)]
    digest.update(json.dumps([list(images.stored.shape), images.class_names, *kind], ensure_ascii=True).encode())
    if whole:
        rows = max(1, _BLOCK // max(images.stored[0].nbytes, 1))
        for start in range(0, len(images), rows):
            check_unchanged(images.stored)
            digest.update(np.ascontiguousarray(images.stored[start : start + rows]).data)
    else:
        digest.update(_of_files(source))
        for row in np.linspace(0, len(images) - 1, _PICTURES).astype(int):
            digest.update(np.ascontiguousarray(images.stored[row]).data)
    if images.labels is not None:
        digest.update(b"labels")
        digest.update(np.ascontiguousarray(images.labels, dtype="<i8").data)
    for name, values in images.fields.items():
        digest.update(json.dumps([name, list(values.shape)]).encode())
        for start in range(0, len(values), _ROWS):  # those of texts are put together row by row
            digest.update(np.ascontiguousarray(values[start : start + _ROWS], dtype="<f4").data)
    return DataDigest(digest.hexdigest(), _CONTENT if whole else _FILES)


def _of_files(source: Path) -> bytes:
    """Names below `source` in order, each with its size and time of change in nanoseconds."""
    files = [source] if source.is_file() else sorted(path for path in source.rglob("*") if path.is_file())
    found = [(path, path.stat()) for path in files]
    rows = [(path.relative_to(source).as_posix(), stat.st_size, stat.st_mtime_ns) for path, stat in found]
    return json.dumps(rows).encode()
