"""Files that are whole or not there, the endings of file names, and failed writes as an OSError that names the file."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

__all__ = [
    "as_source",
    "check_no_device",
    "disk_failure",
    "file_digest",
    "mapped_array",
    "named_failures",
    "suffix_of",
    "sync",
    "whole_directory",
    "whole_file",
    "write_file",
    "write_whole",
]

_TORCH_WRITER = (
    "iostream error",
    "unexpected pos",
    "PytorchStreamWriter failed writing",
    "open file failed with strerror",
)


def suffix_of(path: Path) -> str:
    """The ending of a file's name in lower case: .png for x.PNG."""
    return path.suffix.lower()


def as_source(value: object, wanted: str) -> str | Path:
    """A path or name as it was given. wanted: what it is, for the sentence. Raises TypeError for anything but a text or a path,
    and ValueError for an empty one and for one with a zero byte."""
    if isinstance(value, bytes) or not isinstance(value, str | os.PathLike):
        shown = repr(value) if value is None or isinstance(value, bytes | int | float) else f"a {type(value).__name__}"
        raise TypeError(f"{wanted} is given as a text or a path, got {shown[:60]}")
    text = os.fspath(value)
    if isinstance(text, bytes) or not text.strip() or "\0" in text:
        raise ValueError(f"{wanted} cannot be named {text!r}: give a path or a name")
    return value if isinstance(value, str) else Path(text)


def write_file(path: Path, content: bytes) -> None:
    """Write a file and sync it to the disk."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def write_whole(path: Path, content: bytes) -> None:
    """Write a file under a temporary name, sync it and rename it. Raises OSError, which names the file; an earlier file of
    that name is then unchanged."""
    with whole_file(path) as temporary:
        write_file(temporary, content)
    sync(path.parent)


def check_no_device(path: Path) -> None:
    """Raises ValueError, naming the path, for a device, a pipe or a socket: a file that appears whole takes the place of what
    was there, and who may do so could put one in the place of /dev/null."""
    if path.exists() and not path.is_file() and not path.is_dir():
        raise ValueError(f"{path} is a device or a pipe, which a file would replace: give the name of a file")


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A new empty file with a temporary name beside `path`, to write to. At the end of the block it becomes `path`.

    If the block raises, nothing new is left, and an earlier file of that name is unchanged. The folder is made. Raises
    OSError, which names `path`, if writing fails, also if torch, safetensors or Pillow report this with errors of their own, and
    ValueError as `check_no_device`."""
    check_no_device(path)
    temporary = path.with_name(f".{_short(path.name)}.writing")
    with named_failures(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            _make_anew(temporary)
            yield temporary
            os.replace(temporary, path)
        finally:
            with suppress(OSError):  # tidying up does not hide the error that made it necessary
                temporary.unlink(missing_ok=True)


@contextmanager
def whole_directory(path: Path) -> Iterator[Path]:
    """A new directory to fill. At the end of the block it becomes `path`, which must not exist or must be empty.

    If the block raises, nothing is left. Raises OSError, which names `path`, as `whole_file`."""
    with named_failures(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        parent = Path(tempfile.mkdtemp(prefix=f".{_short(path.name)}.", dir=path.parent))
        try:
            made = parent / "made"
            made.mkdir()  # with the permissions of any new directory
            yield made
            if path.is_dir():
                path.rmdir()
            made.rename(path)
        finally:
            shutil.rmtree(parent, ignore_errors=True)


def mapped_array(path: Path, dtype: np.typing.DTypeLike, shape: tuple[int, ...]) -> np.memmap:
    """A new .npy file of zeros as a writable array. Its place on the disk is reserved, because writing to a mapped file
    without place kills the process. Raises OSError, which names the file and leaves nothing."""
    with named_failures(path):
        try:
            array = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
            if hasattr(os, "posix_fallocate"):
                with path.open("r+b") as file:
                    os.posix_fallocate(file.fileno(), 0, max(1, path.stat().st_size))
        except OSError:
            path.unlink(missing_ok=True)
            raise
    return array


def file_digest(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()


def sync(path: Path) -> None:
    """Sync a file or directory to the disk (fsync)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _make_anew(path: Path) -> None:
    """Make an empty file of that name, with the permissions of any new file. A file that was there, or a link to a file of
    the user's, loses the name and keeps its content."""
    path.unlink(missing_ok=True)
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0), 0o666))


def _short(name: str) -> str:
    """The name, shortened if needed to leave room for an ending: file systems allow 255 bytes."""
    return name if len(os.fsencode(name)) < 200 else hashlib.sha256(os.fsencode(name)).hexdigest()[:32]


def disk_failure(error: BaseException) -> OSError | None:
    """The OSError that an error is, or that torch's or safetensors' writers report in words; None for any other error."""
    if isinstance(error, OSError):
        return error
    text = str(error)
    reported = re.search(r"\(os error (\d+)\)", text)
    if reported and type(error).__name__ == "SafetensorError":
        return OSError(int(reported[1]), os.strerror(int(reported[1])))
    if isinstance(error, RuntimeError) and any(words in text for words in _TORCH_WRITER):
        if isinstance(error.__context__, OSError):
            return error.__context__
        return OSError(errno.EIO, "writing failed, the disk may be full")
    return None


@contextmanager
def named_failures(path: Path) -> Iterator[None]:
    """Inside the block, a failure to write becomes an OSError that names `path`, not the temporary file."""
    try:
        yield
    except Exception as error:
        failure = disk_failure(error)
        if failure is None:
            raise
        raise OSError(failure.errno or errno.EIO, failure.strerror or str(failure), str(path)) from error
