"""The results file of a benchmark. Each finished run adds one entry."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import date
from pathlib import Path
from typing import Any

import torch

from ctm.files import write_whole
from ctm.lock import DirectoryInUse, place_locked
from ctm.terminal.paths import check_place

__all__ = ["Results"]

_ATTEMPTS, _PAUSE = 50, 0.1


class Results:
    """Entries by name in a JSON file, each with the machine it was measured on. go_on: keep what the file holds already.

    Raises ValueError if the file exists and go_on is false, so that a result is not overwritten by accident. Raises
    ValueError or OSError if the file cannot be written."""

    def __init__(self, path: Path, *, go_on: bool) -> None:
        check_place(path)
        self.path = path
        self.entries: dict[str, dict[str, Any]] = {}
        if path.is_file():
            if not go_on:
                raise ValueError(
                    f"{path} holds results already: add --continue to go on with it, or name another --out"
                )
            self.entries = json.loads(path.read_text(encoding="utf-8"))

    def add(self, name: str, entry: Mapping[str, object]) -> None:
        """Keep an entry and write the file as a whole, with what another process may have added to it meanwhile."""
        self.merge({name: {**entry, "measured": _where()}})

    def merge(self, entries: dict[str, dict[str, Any]]) -> None:
        """Keep entries that were measured before, in place of those of the same names, and write the file as a whole."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with _locked_in_turn(self.path):
            if self.path.is_file():
                self.entries |= json.loads(self.path.read_text(encoding="utf-8"))
            self.entries |= entries
            write_whole(self.path, (json.dumps(self.entries, indent=1) + "\n").encode())


@contextmanager
def _locked_in_turn(path: Path) -> Iterator[None]:
    """`ctm.lock.place_locked`, after others have given the place back. Raises DirectoryInUse if they keep it."""
    for attempt in range(_ATTEMPTS):
        with ExitStack() as held:
            try:
                held.enter_context(place_locked(path))
            except DirectoryInUse:
                if attempt == _ATTEMPTS - 1:
                    raise
            else:
                yield
                return
        time.sleep(_PAUSE)


def _where() -> dict[str, object]:
    """Date, commit, processor and torch version of a measurement."""
    return {
        "date": date.today().isoformat(),
        "commit": _commit(),
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def _commit() -> str | None:
    """The commit of the sources in use, with + if they are changed; None outside a repository."""

    def git(*arguments: str) -> str:
        here = Path(__file__).parent
        return subprocess.run(["git", "-C", str(here), *arguments], capture_output=True, text=True, check=True).stdout

    try:
        return git("rev-parse", "--short", "HEAD").strip() + ("+" if git("status", "--porcelain", "--", ".") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    if information.is_file():
        names = [
            line.split(":", 1)[1].strip()
            for line in information.read_text(encoding="utf-8").splitlines()
            if "model name" in line
        ]
        if names:
            return f"{names[0]}, {os.cpu_count()} cores"
    return f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"
