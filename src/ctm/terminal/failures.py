"""Errors as sentences: mistakes of the user, and failures of disk, path or device, each with what to do."""

from __future__ import annotations

import errno
import traceback
from pathlib import Path
from types import FrameType

from ctm.data.folder import cache_directory
from ctm.data.notes import printable
from ctm.files import disk_failure
from ctm.foreign.allowed import allowed_modules, is_allowed
from ctm.foreign.text import raised

__all__ = ["ended_by", "sentence_of", "whose_fault"]

_ADVICE = {
    errno.ENOSPC: "make room, or name another place",
    errno.EDQUOT: "make room, or name another place",
    errno.EFBIG: "the limit on a file's size (ulimit -f) or the file system's is below it",
    errno.EROFS: "name another place",
    errno.EACCES: "give permission, or name another place",
    errno.EPERM: "give permission, or name another place",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.ENOTDIR: "a part of the path is a file, not a directory",
    errno.EISDIR: "it is a directory: name a file",
    errno.ENOENT: "check the name",
    errno.EEXIST: "it is there already: name another",
    errno.ELOOP: "it is a link: remove it, or name another place",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
    errno.ENFILE: "raise the limit on open files (ulimit -n)",
    errno.EIO: "the disk, or the terminal, is gone or damaged",
}
_MEMORY = ("can't allocate memory", "out of memory", "not enough memory")


def sentence_of(error: Exception) -> str | None:
    """A sentence that says what is wrong and what to do; None for a fault of ctm. It covers a user's mistake (ValueError), a
    package that is not installed, a path, disk or device that refuses, and too little memory. Names of files in the sentence
    cannot steer a terminal."""
    words = _words_of(error)
    return None if words is None else "\n".join(printable(line) for line in words.expandtabs().split("\n"))


def _words_of(error: Exception) -> str | None:
    if out_of_memory(error):
        return (
            "there is not enough memory: give a smaller --batch_size (train: --data.batch_size), fewer --num or --rows where the "
            "command has no batches, or another --device"
        )
    if (import_failed := _in_their_import(error)) is not None:
        return import_failed
    if type(error) is ImportError and "pip install" in str(error):  # a package that is not there, in a sentence of ours
        return str(error)
    if isinstance(error, OSError) and error.errno is None:
        return str(error)  # a sentence of our own, or Pillow's
    failure = disk_failure(error)
    if failure is not None:
        return _of_the_disk(failure)
    if isinstance(error, UnicodeError):
        return f"text cannot be read or shown: {error}"
    return str(error) if isinstance(error, ValueError) else _in_their_code(error)


def whose_fault(error: Exception) -> str:
    """The words for a fault of ctm. They name the user's own module where it called the part of ctm that failed."""
    theirs, ours = _theirs_and_ours(error)
    if not ours:
        return "This is a fault of ctm; --debug shows where."
    caller, part = theirs[-1].f_globals["__name__"], ours[-1].f_globals["__name__"]
    return (
        f"It came up in {part}, which {caller} calls: a fault of ctm, unless {caller} gives it what it does not take; "
        "--debug shows where."
    )


def ended_by(stop: SystemExit) -> str | None:
    """The sentence for a SystemExit that came up in the user's own module, or in a library that it called: it would end the
    command without a word, and with 0 as if all were done. None for one of ctm's own."""
    return _in_their_import(stop) or _in_their_code(stop)


def _in_their_import(error: BaseException) -> str | None:
    """The sentence for the user's own module whose import ended with this error; None if no import did."""
    theirs = _module_that_failed(error)
    if theirs is None:
        return None
    return f"{theirs}, allowed by --allow or CTM_ALLOW, cannot be imported ({raised(error)}): mend it (--debug shows where)"


def _theirs_and_ours(error: BaseException) -> tuple[list[FrameType], list[FrameType]]:
    """The frames of the user's own modules, and those of ctm that they called last, outermost first."""
    frames = _frames(error)
    names = [str(frame.f_globals.get("__name__")) for frame in frames]
    theirs = [place for place, name in enumerate(names) if is_allowed(name)]
    below = range(theirs[-1] + 1, len(frames)) if theirs else range(0)
    ours = [place for place in below if names[place].partition(".")[0] == "ctm"]
    return [frames[place] for place in theirs], [frames[place] for place in ours]


def _in_their_code(error: BaseException) -> str | None:
    """The sentence for an error that came up in the user's own module, or in a library that it called; None where none of its
    code ran, and for an error in a part of ctm that it called."""
    theirs, ours = _theirs_and_ours(error)
    if not theirs or ours:
        return None
    name, inside = theirs[-1].f_globals["__name__"], theirs[-1].f_code.co_name
    return (
        f"{name}, allowed by --allow or CTM_ALLOW, failed in {inside} ({raised(error)}): mend it (--debug shows where)"
    )


def _frames(error: BaseException) -> list[FrameType]:
    """Of the error's traceback, outermost first; none where CTM_ALLOW is no list of names."""
    try:
        allowed = allowed_modules()
    except ValueError:  # every command says so before it imports anything
        return []
    return [frame for frame, _ in traceback.walk_tb(error.__traceback__)] if allowed else []


def _module_that_failed(error: BaseException) -> str | None:
    """The name of the user's own module whose import ended with this error; None if no import did."""
    frames = _frames(error)
    if isinstance(error, SyntaxError) and frames:
        return f"{error.filename or 'a module'}"
    names = [str(frame.f_globals.get("__name__")) for frame in frames if frame.f_code.co_name == "<module>"]
    return next((name for name in reversed(names) if is_allowed(name)), None)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there is too little memory, on the CPU or on a GPU."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _MEMORY)


def _of_the_disk(error: OSError) -> str:
    reason = error.strerror or str(error)
    names = [name for name in (error.filename, error.filename2) if name is not None]
    where = " and ".join(str(name) for name in names) or "the output, or a file"
    advice = _ADVICE.get(error.errno or 0)
    cache = "; the environment variable CTM_CACHE names the cache" if any(map(_in_cache, names)) else ""
    return f"{where}: {reason}" + (f": {advice}" if advice else "") + cache


def _in_cache(name: object) -> bool:
    try:
        return Path(str(name)).is_relative_to(cache_directory())
    except ValueError:
        return False
