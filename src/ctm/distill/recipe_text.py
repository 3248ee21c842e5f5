"""The recipe that `ctm distill` writes: settings in YAML, each with the reason for it as a comment."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import yaml

from ctm.distill.choices import Choice

__all__ = ["recipe_text"]

_WIDTH = 116
_STANDS_AT = {  # the setting before which a choice's reason is written
    "data.batch_size": "data",
    "grid_points": "objectives",
    "max_solver_steps": "objectives",
    "guidance": "objectives",
    "grid": "objectives",
    "start": "objectives",
}


def recipe_text(settings: dict[str, Any], choices: Sequence[Choice], title: str) -> str:
    """The recipe as a file that `ctm train --config` reads. title: its first line, one sentence."""
    lines = [f"# {' '.join(title.split())[:118]}"]
    for name, value in settings.items():
        for choice in choices:
            if _STANDS_AT.get(choice.name, choice.name) == name:
                lines += textwrap.wrap(
                    choice.line(), _WIDTH, initial_indent="# ", subsequent_indent="#   ", break_on_hyphens=False
                )
        lines.append(yaml.safe_dump({name: value}, sort_keys=False, allow_unicode=True, width=_WIDTH).rstrip())
    return "\n".join(lines) + "\n"
