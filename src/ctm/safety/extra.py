"""The packages of the extra `serve`: their absence as a sentence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["installed"]


@contextmanager
def installed(extra: str = "serve") -> Iterator[None]:
    """Inside the block, a package that is not installed becomes a ValueError that says what to install."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] == "ctm":
            raise
        raise ValueError(
            f"policies, filters and records need the package {error.name}, which is not installed: "
            f'pip install "ctm-torch[{extra}]"'
        ) from error
    except ImportError as error:  # ours, with a sentence
        raise ValueError(str(error)) from error
