"""Nonces of marked images, from wherever they are kept: any iterable of `Candidate` serves, such as a service's database."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ctm.foreign.text import parse_json, plain
from ctm.keystream import as_nonce
from ctm.provenance.watermark import Candidate

__all__ = ["read_nonces"]

_LONGEST = 1 << 16  # bytes of a line


def read_nonces(file: Path) -> Iterator[Candidate]:
    """The candidates in a file of JSON lines, one image each: {"nonce": "hexadecimal digits", "condition": 4, "model": "digest",
    "record": "id"}. All but the nonce may be left out.

    Raises OSError for a file that cannot be read, ValueError, naming the line, for a line of another form or of more than
    65,536 bytes."""
    with file.open("rb") as lines:
        number = 0
        while line := lines.readline(_LONGEST + 1):
            number += 1
            if line.strip():
                yield _candidate(line, f"{file}, line {number}")


def _candidate(line: bytes, name: str) -> Candidate:
    if len(line) > _LONGEST:
        raise ValueError(f"{name} is longer than {_LONGEST} bytes, more than a nonce's line has")
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} is no text in UTF-8") from error
    values = parse_json(text, name)
    if not isinstance(values, dict) or not isinstance(values.get("nonce"), str):
        raise ValueError(f'{name} is no entry of a nonce: give {{"nonce": "hexadecimal digits", "condition": 4}}')
    try:
        nonce = as_nonce(bytes.fromhex(values["nonce"]))
    except ValueError as error:
        raise ValueError(
            f"{name}: the nonce must be 1 to 64 bytes in hexadecimal digits, got {plain(values['nonce'])!r}"
        ) from error
    condition = values.get("condition")
    if not _is_condition(condition):
        raise ValueError(
            f"{name}: the condition must be a label, a mapping of fields or null, got {plain(str(condition))}"
        )
    return Candidate(nonce, condition, _text(values, "model", name), _text(values, "record", name))


def _is_condition(value: Any) -> bool:
    return value is None or isinstance(value, Mapping) or (isinstance(value, int) and not isinstance(value, bool))


def _text(values: Mapping[str, Any], key: str, name: str) -> str | None:
    value = values.get(key)
    if value is not None and not isinstance(value, str):
        raise ValueError(f"{name}: {key} must be a text or null, got {plain(str(value))}")
    return value
