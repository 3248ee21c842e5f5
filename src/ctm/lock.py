"""One process at a time writes a run directory, or a place of results: a lock that the system takes back from a process that
ends in any way."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["LOCK", "DirectoryInUse", "DirectoryLock", "place_locked", "run_locked"]

LOCK = ".lock"
_LOG = logging.getLogger(__name__)


class DirectoryInUse(ValueError):
    """Another process writes this directory."""


class DirectoryLock:
    """The lock of a run directory, a file in it that names who holds it (flock).

    A killed process holds nothing: the system gives its lock back. On network file systems the lock counts among the processes
    of one machine, and among machines only where the file system passes flock on (NFS on Linux and most cluster file systems
    do). Where locks are not to be had at all, a warning says so."""

    def __init__(self, directory: Path, file: Path | None = None) -> None:
        """file: the lock's, where it is not in the directory."""
        self.directory, self.file = directory, file or directory / LOCK
        self._descriptor: int | None = None

    def take(self) -> None:
        """Hold the lock until `release`, or until this process ends. Raises DirectoryInUse naming the holder, OSError where the
        file cannot be written or is a link, which is not followed."""
        try:
            import fcntl
        except ImportError:  # Windows
            _LOG.warning(
                "%s: this system has no file locks, so that two processes writing it would not notice", self.directory
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
                "%s cannot be locked (%s): two processes writing it would not notice each other",
                self.directory,
                error.strerror,
            )
            return
        self._descriptor = descriptor
        os.ftruncate(descriptor, 0)
        about = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S %z")}
        os.write(descriptor, json.dumps(about).encode())

    def is_current(self) -> bool:
        """Whether the file that is held still has its name: a process that ended may have removed it meanwhile."""
        if self._descriptor is None:
            return True
        try:
            return os.path.samestat(os.fstat(self._descriptor), os.stat(self.file, follow_symlinks=False))
        except FileNotFoundError:
            return False

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


@contextmanager
def place_locked(out: Path) -> Iterator[None]:
    """Meanwhile this process alone writes `out`, a file or a directory of results that may not be there yet. The lock is a hidden
    file beside it (in it, where its parent cannot be written to), and is removed at the end.

    Makes the parent. Raises DirectoryInUse, naming the holder, where another process writes there."""
    place = out.resolve()
    place.parent.mkdir(parents=True, exist_ok=True)
    inside = place.is_dir() and (place == place.parent or not os.access(place.parent, os.W_OK))
    name = (
        hashlib.sha256(os.fsencode(place.name)).hexdigest()[:32] if len(os.fsencode(place.name)) > 200 else place.name
    )
    file = place / LOCK if inside else place.parent / f".{name}{LOCK}"
    lock = DirectoryLock(out, file)
    lock.take()
    while not lock.is_current():  # removed by its holder between our opening and our locking it
        lock.release()
        lock.take()
    try:
        yield
    finally:
        with suppress(OSError):
            file.unlink(
                missing_ok=True
            )  # while it is held: a process that waits for this file sees that it lost its name
        lock.release()


def _read(descriptor: int) -> dict[str, object]:
    try:
        found = json.loads(os.pread(descriptor, 4096, 0))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _in_words(holder: Mapping[str, object]) -> str:
    if not {"pid", "host", "since"} <= holder.keys():
        return "another process"
    return f"process {holder['pid']} on {holder['host']}, which began at {holder['since']}"
