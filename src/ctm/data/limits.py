"""How much memory a data file may ask for."""

from __future__ import annotations

from ctm.data.notes import option

__all__ = ["check_size", "memory_limit"]

_DEFAULT = 1e9
_TIMES = 10


def memory_limit(file_bytes: int, max_gb: float | None) -> float:
    """Number of bytes that the arrays of a file may take: max_gb·10⁹. If max_gb is None, it is 1 GB, or ten times the file's
    size if that is more.

    So a file that was made to inflate costs little, and your own large file is read."""
    if max_gb is not None and not max_gb > 0:
        raise ValueError(f"data.max_gb must be above 0, got {max_gb}")
    return max(_DEFAULT, _TIMES * file_bytes) if max_gb is None else max_gb * 1e9


def check_size(name: str, size: int, file_bytes: int, max_gb: float | None) -> None:
    """Raises ValueError where `size` bytes exceed the limit. Call it before any of them is read."""
    limit = memory_limit(file_bytes, max_gb)
    if size > limit:
        raise ValueError(
            f"{name} takes {size / 1e9:.1f} GB in memory, more than {limit / 1e9:.1f} GB (data.max_gb; by default 1 GB or ten "
            f"times the file's {file_bytes / 1e6:.1f} MB): if you trust the file and have the memory, give "
            f"{option('max_gb', f'{size / 1e9 * 1.05:.2g}')}"
        )
