"""A PostgreSQL server of the tests' own, where Debian's `postgresql` is installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

_FOUND = [Path(found) for found in (shutil.which("initdb"),) if found]
_BINARIES = next(
    (found.resolve().parent for found in [*_FOUND, *Path("/usr/lib/postgresql").glob("*/bin/initdb")]), None
)
IS_THERE = _BINARIES is not None and find_spec("psycopg") is not None


def _as_owner(folder: Path, *command: object) -> None:
    """Run one of the server's programs as a user that it accepts: it refuses root."""
    words = [str(_BINARIES / str(command[0])), *map(str, command[1:])]
    words = ["runuser", "-u", "postgres", "--", *words] if os.getuid() == 0 else words
    subprocess.run(words, check=True, cwd=folder, stdout=subprocess.DEVNULL)


@contextmanager
def server() -> Iterator[str]:
    """A server that listens on a socket in a directory of its own; its URL."""
    folder = Path(tempfile.mkdtemp(prefix="pg", dir="/tmp"))  # a socket's path may have 107 bytes
    if os.getuid() == 0:
        shutil.chown(folder, "postgres")
    _as_owner(folder, "initdb", "-D", folder / "data", "-U", "postgres", "-A", "trust")
    start(folder)
    yield f"postgresql+psycopg://postgres@/postgres?host={folder}"
    stop(folder)
    shutil.rmtree(folder)


def start(folder: Path) -> None:
    """Start the server of a directory, and wait until it takes connections."""
    options = f"-c listen_addresses='' -k {folder}"
    _as_owner(folder, "pg_ctl", "-D", folder / "data", "-w", "-l", folder / "log", "-o", options, "start")


def stop(folder: Path) -> None:
    """Stop the server of a directory as a crash does: its connections end at once."""
    _as_owner(folder, "pg_ctl", "-D", folder / "data", "-w", "-m", "immediate", "stop")
