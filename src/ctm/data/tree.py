"""The picture files under a folder in natural order, the classes that the sub-folders are, and what was left out."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import numpy as np

from ctm.data.files import EXTENSIONS

__all__ = ["PictureTree", "find_pictures", "hidden_part", "left_out_hidden", "natural"]

_SYSTEM = frozenset({"__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found"})
_SPLITS = frozenset({"train", "test", "val", "valid", "validation"})
_SHOWN = 5
_DIGITS = re.compile(r"([0-9]+)")


NaturalKey: TypeAlias = list[str | tuple[int, str]]


def natural(name: str) -> NaturalKey:
    """A sort key for names in the order in which people count: 1, 2, 10. A number stands as its count of digits and its digits,
    which compare as the number does, however long it is."""
    return [_number(part) if index % 2 else part for index, part in enumerate(_DIGITS.split(name))]


def _number(digits: str) -> tuple[int, str]:
    kept = digits.lstrip("0")
    return len(kept), kept


def hidden_part(name: str) -> str | None:
    """The part of a path with slashes up to its first hidden or system folder or file (`__MACOSX`); None where there is none."""
    parts = name.split("/")
    first = next((number for number, part in enumerate(parts, 1) if _hidden(part)), None)
    return None if first is None else "/".join(parts[:first])


def left_out_hidden(names: Iterable[str]) -> list[str]:
    """The line that names hidden files and folders with pictures in them; empty where there are none."""
    hidden = sorted(set(names))
    return [f"hidden, so left out with the pictures in them: {_some(hidden)}"] if hidden else []


@dataclass(frozen=True)
class PictureTree:
    """files: in order. labels int64 (N,) and class_names; None and empty for a flat folder. notes: what a user is told."""

    files: list[Path]
    labels: np.ndarray | None
    class_names: list[str]
    notes: tuple[str, ...]


@dataclass
class _Seen:
    """What one walk found. files: with their sort keys. deep: how many lie below the folder itself, and in which
    sub-folders."""

    files: list[tuple[list[NaturalKey], Path]] = field(default_factory=list)
    deep: Counter[str] = field(default_factory=Counter)
    others: Counter[str] = field(default_factory=Counter)
    hidden: list[str] = field(default_factory=list)
    loops: list[str] = field(default_factory=list)

    def ordered(self) -> list[Path]:
        return [path for _, path in sorted(self.files, key=lambda pair: (pair[0], str(pair[1])))]


def find_pictures(root: Path) -> PictureTree:
    """The pictures of a folder. If they are in sub-folders, each sub-folder is a class, with everything below it. If they
    are in the folder itself, there are no classes.

    Order is natural (1, 2, 10). Hidden files and folders, and system folders (`__MACOSX`), are left out. Links are followed,
    but not back to a folder on the way. A sub-folder without pictures stays a class. Raises ValueError for a folder without
    pictures, and for pictures both directly in the folder and in sub-folders."""
    top = _walk(root, root, deep=False)
    folders = sorted((entry for entry in _folders(root)), key=lambda path: (natural(path.name), path.name))
    walks = {folder: _walk(folder, root, deep=True) for folder in folders}
    filled = [folder for folder, seen in walks.items() if seen.files]
    seen_all = [top, *walks.values()]
    if top.files and filled:
        raise ValueError(
            f"{root} holds pictures both directly ({top.ordered()[0].name}) and in sub-folders ({filled[0].name}): "
            "put all of them in one sub-folder for each class, or all directly in it"
        )
    left_out = _left_out(seen_all)
    if not top.files and not filled:
        kinds = ", ".join(sorted(e[1:] for e in EXTENSIONS))
        raise ValueError(
            f"{root} holds no pictures: files ending in {kinds} are looked for, flat or in sub-folders"
            + "".join(f"; {line}" for line in left_out)
        )
    if top.files:
        empty = [f"folders without pictures are left out: {_some(folders)}"] if folders else []
        return PictureTree(top.ordered(), None, [], tuple(left_out + empty))
    names = [unicodedata.normalize("NFC", folder.name) for folder in folders]
    files = [file for seen in walks.values() for file in seen.ordered()]
    labels = np.repeat(np.arange(len(folders)), [len(seen.files) for seen in walks.values()])
    return PictureTree(files, labels, names, (*left_out, *_of_classes(root, names, walks)))


def _walk(folder: Path, root: Path, *, deep: bool) -> _Seen:
    """The contents of a folder, and of the folders below it if `deep`."""
    seen, visited = _Seen(), set[tuple[int, int]]()
    start: list[NaturalKey] = []
    waiting = [(folder, start, frozenset({_identity(folder)}))]
    while waiting:
        place, keys, above = waiting.pop()
        found = 0
        for entry in os.scandir(place):
            name = entry.name
            if _hidden(name):
                seen.hidden += [_below(place / name, root)] if _holds_pictures(place / name) else []
            elif _is(entry.is_dir):
                identity = _identity(place / name)
                if identity in above:
                    seen.loops.append(_below(place / name, root))
                elif deep and identity not in visited:
                    visited.add(identity)
                    waiting.append((place / name, [*keys, natural(name)], above | {identity}))
            elif _suffix(name) in EXTENSIONS and _is(entry.is_file):
                seen.files.append(([*keys, natural(name)], place / name))
                found += 1
            else:
                broken = entry.is_symlink() and not (place / name).exists()
                seen.others.update(["broken links" if broken else _suffix(name) or "without ending"])
        if keys and found:
            seen.deep[_below(place, root)] = found
    return seen


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _folders(root: Path) -> list[Path]:
    """The sub-folders that are classes: not hidden, and no link back to the folder itself."""
    folders = [root / entry.name for entry in os.scandir(root) if _is(entry.is_dir) and not _hidden(entry.name)]
    return [folder for folder in folders if _identity(folder) != _identity(root)]


def _is(question: Callable[[], bool]) -> bool:
    """The answer to a question about a directory entry. It is no for a link in a circle."""
    try:
        return question()
    except OSError:
        return False


def _hidden(name: str) -> bool:
    return name.startswith(".") or name in _SYSTEM


def _identity(folder: Path) -> tuple[int, int]:
    state = folder.stat()
    return state.st_dev, state.st_ino


def _below(path: Path, root: Path) -> str:
    return str(path.relative_to(root))


def _holds_pictures(path: Path) -> bool:
    """Whether a hidden file has the name of a picture, or a hidden folder has a picture directly in it."""
    try:
        names = [entry.name for entry in os.scandir(path)] if path.is_dir() else [path.name]
    except OSError:
        return False
    return any(_suffix(name) in EXTENSIONS for name in names)


def _some(names: list[Path] | list[str]) -> str:
    shown = [name.name if isinstance(name, Path) else name for name in names[:_SHOWN]]
    return ", ".join(shown) + (", …" if len(names) > _SHOWN else "")


def _left_out(walks: list[_Seen]) -> list[str]:
    """Lines that name the files and folders that are not read."""
    others = sum((seen.others for seen in walks), Counter[str]())
    loops = [name for seen in walks for name in seen.loops]
    lines = []
    if others:
        kinds = ", ".join(f"{kind} {count}" for kind, count in others.most_common())
        lines.append(f"{others.total()} file{'s' * (others.total() > 1)} left out: {kinds}")
    lines += left_out_hidden(name for seen in walks for name in seen.hidden)
    if loops:
        lines.append(f"links that lead back to a folder above them are left out: {_some(loops)}")
    return lines


def _of_classes(root: Path, names: list[str], walks: dict[Path, _Seen]) -> list[str]:
    """Lines about the classes. Raises ValueError for two folders whose names are the same letters in two encodings."""
    lines = []
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ValueError(f"{root} holds two folders {twice[0]}, the same name in two encodings: rename or merge them")
    alike = Counter(name.casefold() for name in names)
    cases = [name for name in names if alike[name.casefold()] > 1]
    if cases:
        lines.append(f"these folders differ only in upper and lower case and are classes apart: {_some(cases)}")
    empty = [
        f"{number} {name}"
        for number, (name, seen) in enumerate(zip(names, walks.values(), strict=True))
        if not seen.files
    ]
    if empty:
        lines.append(
            f"{len(empty)} class{'es' * (len(empty) > 1)} without pictures stay{'s' * (len(empty) == 1)}: {_some(empty)}"
        )
    deep = sum((seen.deep for seen in walks.values()), Counter[str]())
    if deep:
        lines.append(
            f"pictures in folders below a class folder count to that class: {deep.total()}, in {_some(sorted(deep))}"
        )
    if len(names) == 1:
        lines.append(
            f"all pictures are in one folder, so there is one class, {names[0]}: without sub-folders there is none"
        )
    elif set(names) <= _SPLITS:
        lines.append(
            f"the classes are {' and '.join(names)}: if these are parts of a set with folders of classes, give {root / names[0]}"
        )
    return lines
