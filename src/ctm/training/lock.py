"""One process at a time writes a run directory: a lock that the system takes back from a process that ends in any way."""

from __future__ import annotations

import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["LOCK", "DirectoryInUse", "DirectoryLock", "run_locked"]

LOCK = ".lock"
_LOG = logging.getLogger(__name__)


class DirectoryInUse(ValueError):
    """Another process writes this directory."""


class DirectoryLock:
    """The lock of a run directory, a file in it that names who holds it (flock).

    A killed process holds nothing: the system gives its lock back. On network file systems the lock counts among the processes
    of one machine, and among machines only where the file system passes flock on (NFS on Linux and most cluster file systems
    do). Where locks are not to be had at all, a warning says so."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.file = directory, directory / LOCK
        self._descriptor: int | None = None

    def take(self) -> None:
        """Hold the lock until `release`, or until this process ends. Raises DirectoryInUse naming the holder, OSError where the
        file cannot be written or is a link, which is not followed."""
        try:
            import fcntl
        except ImportError:  # Windows
            _LOG.warning(
                "%s: this system has no file locks, so that two trainings in it would not notice", self.directory
            )
            return
        if self._descriptor is not None:
            return
        descriptor = os.open(self.file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)  # a link is no lock of ours
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = _read(descriptor)
            os.close(descriptor)
            raise DirectoryInUse(
                f"{self.directory} is being written by {_in_words(holder)}: let it end or stop it, or use another --out"
            ) from error
        except OSError as error:
            os.close(descriptor)
            _LOG.warning(
                "%s cannot be locked (%s): two trainings in it would not notice each other",
                self.directory,
                error.strerror,
            )
            return
        self._descriptor = descriptor
        os.ftruncate(descriptor, 0)
        about = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S %z")}
        os.write(descriptor, json.dumps(about).encode())

    def release(self) -> None:
        """Give the lock back. The empty file stays: removing it could take away another's."""
        if self._descriptor is not None:
            descriptor, self._descriptor = self._descriptor, None
            try:
                os.ftruncate(descriptor, 0)
            finally:
                os.close(descriptor)


@contextmanager
def run_locked(directory: Path) -> Iterator[None]:
    """Meanwhile nobody trains in `directory`, where that is a run directory: for what writes into its model/. Raises
    DirectoryInUse where somebody does."""
    if not (directory / LOCK).is_file():
        yield
        return
    lock = DirectoryLock(directory)
    lock.take()
    try:
        yield
    finally:
        lock.release()


def _read(descriptor: int) -> dict[str, Any]:
    try:
        found = json.loads(os.pread(descriptor, 4096, 0))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _in_words(holder: dict[str, Any]) -> str:
    if not {"pid", "host", "since"} <= holder.keys():
        return "another process"
    return f"process {holder['pid']} on {holder['host']}, which began at {holder['since']}"
