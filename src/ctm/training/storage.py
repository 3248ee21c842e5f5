"""Files that are whole or not there: synced before they get their name, with a checksum for each file of a directory."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from ctm.files import sync, write_file
from ctm.foreign.text import plain, read_json

__all__ = [
    "clear_leftovers",
    "damage",
    "remove",
    "replace_directory",
    "sync_files",
    "write_directory",
]

MANIFEST = "manifest.json"


def write_directory(target: Path, files: Iterable[tuple[str, bytes]]) -> None:
    """Write (name, content) pairs as the directory `target`, and manifest.json with the size and SHA-256 of each.

    Everything is written and synced under a temporary name beside it and renamed, so that `target` is whole whenever it is
    there; one that was there before is replaced. Raises OSError, leaving nothing new behind, where writing fails."""
    temporary = target.with_name(f".writing-{target.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        manifest = {}
        for name, content in files:
            write_file(temporary / name, content)
            manifest[name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        write_file(temporary / MANIFEST, (json.dumps({"files": manifest}, indent=2) + "\n").encode())
        sync(temporary)
        replace_directory(temporary, target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def replace_directory(temporary: Path, target: Path) -> None:
    """Rename a directory whose files are on the disk to `target`; one there before goes by the name .old-… and is removed
    last, so that a whole one exists at every moment."""
    old = target.with_name(f".old-{target.name}")
    if target.exists():
        shutil.rmtree(old, ignore_errors=True)
        os.replace(target, old)
    os.replace(temporary, target)
    sync(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def sync_files(directory: Path) -> None:
    """Bring the files below a directory that others wrote, and the directory itself, to the disk."""
    for file in directory.rglob("*"):
        sync(file)
    sync(directory)


def clear_leftovers(directory: Path) -> None:
    """Remove what a killed writer left in `directory`, and give back its name to what it was about to replace."""
    for old in directory.glob(".old-*"):
        target = directory / old.name.removeprefix(".old-")
        if not target.exists():
            os.replace(old, target)
    for left in (*directory.glob(".old-*"), *directory.glob(".writing-*"), *directory.glob(".*.writing")):
        remove(left)


def remove(path: Path) -> None:
    """Remove a file, a directory with what is in it, or a link and not what it leads to; nothing where nothing is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def damage(directory: Path) -> str | None:
    """What is wrong with a directory that `write_directory` wrote, in words; None where it is whole."""
    try:
        files = read_json(directory / MANIFEST)["files"]
        for name, expected in files.items():
            if Path(name).name != name or not (directory / name).is_file():
                return f"{plain(name)} is missing"
            wrong = _difference(directory / name, expected["bytes"], expected["sha256"])
            if wrong:
                return f"{name} {wrong}"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except OSError as error:
        return f"{Path(error.filename or directory).name} cannot be read ({error.strerror})"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{MANIFEST} is not readable"
    return None


def _difference(file: Path, size: int, checksum: str) -> str | None:
    """How a file differs from what was written."""
    with file.open("rb") as opened:
        found = os.fstat(opened.fileno()).st_size
        if found != size:
            return f"has {found} bytes instead of {size}"
        digest = hashlib.sha256()
        while block := opened.read(1 << 20):
            digest.update(block)
    if digest.hexdigest() != checksum:
        return "does not have the checksum it was written with"
    return None
