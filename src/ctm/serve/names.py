"""What a prompt means: the number of a class."""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Sequence

from ctm.foreign.text import plain

__all__ = ["label_of"]

_SHOWN = 20


def label_of(prompt: str, classes: int, names: Sequence[str] = ()) -> int | None:
    """The class that a prompt names, by its name or number; None for an empty prompt.

    A name goes before a number; other capitals are accepted where they fit one class only. Raises ValueError, with the nearest
    names, for a prompt that is no class, and for any prompt of a model without classes."""
    text = _normal(prompt)
    if not text:
        return None
    if not classes:
        raise ValueError("this model has no classes: leave the prompt empty")
    known = [_normal(name) for name in names]
    if text in known:
        return known.index(text)
    if text.isascii() and text.isdecimal() and len(text) < 10 and int(text) < classes:
        return int(text)
    alike = [index for index, name in enumerate(known) if name.casefold() == text.casefold()]
    if len(alike) == 1:
        return alike[0]
    near = difflib.get_close_matches(text[:100], known, 3, 0.6)
    shown = near or [str(name) for name in known[:_SHOWN]]
    rest = ", …" if not near and len(known) > _SHOWN else ""
    listed = (
        f" ({'did you mean ' if near else ''}{', '.join(plain(name, 40) for name in shown)}{rest}{'?' if near else ''})"
    )
    raise ValueError(
        f"the prompt must be a class of the model, its name or a number in 0 … {classes - 1}, got {plain(prompt)!r}"
        f"{listed if shown else ''}"
    )


def _normal(text: str) -> str:
    return unicodedata.normalize("NFC", text).strip()
