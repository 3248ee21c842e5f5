"""Files of one JSON object a line, as metrics.jsonl: what a full disk or an editor damaged in them is left out, and said."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from ctm.foreign.text import JSONObject

__all__ = ["read_rows"]

_LOG = logging.getLogger(__name__)


def read_rows(file: Path) -> list[JSONObject]:
    """The rows of a file, none where it is not there. Every row has a number "step".

    A last line without its end, which a killed writer left, does not count. Any other line that is no such row is left out with
    a warning that names the file and the line."""
    if not file.is_file():
        return []
    text = file.read_bytes().decode(errors="replace")
    rows = []
    for number, line in enumerate(text[: text.rfind("\n") + 1].split("\n")[:-1], start=1):
        row = _row(line)
        if row is None:
            what = "is empty" if not line.strip() else "is damaged"
            _LOG.warning("%s: line %d %s: it is left out", file, number, what)
        else:
            rows.append(row)
    return rows


def _row(line: str) -> dict[str, object] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    step = row.get("step") if isinstance(row, dict) else None
    return row if isinstance(step, int | float) and not isinstance(step, bool) else None
