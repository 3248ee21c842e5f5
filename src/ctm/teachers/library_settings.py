"""Settings of parts of transformers and diffusers that would make these libraries import code or take other weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ctm.foreign.text import plain

__all__ = ["refuse_requests"]

_CODE = ("auto_map", "custom_pipelines", "custom_generate")
_KERNELS = ("attn_implementation", "_attn_implementation", "experts_implementation", "_experts_implementation")
_TORCHS_OWN = {None, "eager", "sdpa", "flex_attention", "grouped_mm", "batched_mm"}  # the others may be fetched
_OTHER_WEIGHTS = ("quantization_config", "compression_config")


def refuse_requests(settings: object, place: str) -> None:
    """Raises ValueError for settings, at any depth, that ask for code of a file's own (auto_map), for kernels by the name of a
    repository (attn_implementation), or for another library's weights (quantization_config). Nothing of them is imported."""
    for name, value in _entries(settings):
        if name in _CODE and value:
            raise ValueError(f"{place}: its config asks for code of its own ({name}): nothing of it was imported")
        if name in _KERNELS and not set(_words(value)) <= _TORCHS_OWN:
            raise ValueError(
                f"{place}: its config asks for kernels from elsewhere ({name}: {plain(str(value), 60)}): nothing was imported"
            )
        if name in _OTHER_WEIGHTS and value is not None:
            raise ValueError(
                f"{place}: its weights are quantized ({name}), and what is read here are floating-point numbers: save it "
                "again without that"
            )


def _words(value: Any) -> list[Any]:
    """The names in a setting that is one name, or a mapping from parts to names; anything else stands for itself as text."""
    parts = list(value.values()) if isinstance(value, dict) else [value]
    return [part if isinstance(part, str | None) else repr(part) for part in parts]


def _entries(settings: object) -> Iterator[tuple[str, Any]]:
    """Each (name, value) of JSON's objects, from the outermost in. Its depth was bounded when it was read."""
    if isinstance(settings, dict):
        yield from settings.items()
    inner = settings.values() if isinstance(settings, dict) else settings if isinstance(settings, list) else ()
    for value in inner:
        yield from _entries(value)
