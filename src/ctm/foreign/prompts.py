"""Prompts in a text file, one in each line, and what a prompt may hold."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path

from ctm.foreign.text import read_text

__all__ = ["checked_prompt", "read_prompts"]

_MOST_BYTES, _LONGEST = 16 << 20, 2000
_REFUSED = {
    "Cc": "a control character",
    "Cs": "half of a pair of UTF-16",
    "Zl": "a separator of lines",
    "Zp": "a separator of paragraphs",
}


def read_prompts(file: Path) -> list[str]:
    """The lines of a file in UTF-8, without spaces around them; an empty line in between is the empty prompt. Only line feeds,
    alone or after a carriage return, end a line; a byte order mark at the start is no part of the first.

    Raises FileNotFoundError where there is no file, and ValueError for one without any prompt, for one of more than 16 MB, and as
    `checked_prompt`."""
    try:
        text = read_text(file, _MOST_BYTES)
    except (FileNotFoundError, IsADirectoryError) as error:
        raise FileNotFoundError(f"there is no file {file}") from error
    lines = re.split(r"\r?\n", text.removeprefix("\ufeff").rstrip(" \t\r\n"))
    prompts = [checked_prompt(line, f"{file}, line {number}") for number, line in enumerate(lines, 1)]
    if not any(prompts):
        raise ValueError(f"{file} holds no prompts: one stands in each line")
    return prompts


def checked_prompt(text: str, where: str) -> str:
    """A prompt without spaces around it. It may hold all that languages are written with, spaces of any width and joiners too.

    Raises ValueError, in a sentence that starts with `where`, for a prompt of more than 2,000 characters, and for control
    characters and separators of lines, with their place in it."""
    prompt = text.strip()
    if len(prompt) > _LONGEST:
        raise ValueError(f"{where}: a prompt has at most {_LONGEST:,} characters, this one has {len(prompt):,}")
    for place, letter in enumerate(prompt, 1):
        kind = _REFUSED.get(unicodedata.category(letter))
        if kind is not None:
            raise ValueError(
                f"{where}: character {place} of the prompt is U+{ord(letter):04X}, {kind}: a prompt is one line of text"
            )
    return prompt
