"""Labels and class names: read from columns and arrays, shown with their numbers, matched between data and model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from ctm.data.notes import printable, tell
from ctm.data.tree import natural
from ctm.foreign.text import with_article

__all__ = ["compare_classes", "could_be_labels", "listed_classes", "match_classes", "read_labels", "text_of"]

_MOST_CLASSES = 1_000_000
_SHOWN, _LINE = 12, 80  # classes, and characters of one


def listed_classes(names: Sequence[str]) -> str:
    """A text such as "0 Activities, 1 Flags, …, 999 zebra". If there are more than twelve classes, it has the first eleven
    and the last."""
    if list(names) == [str(number) for number in range(len(names))] and len(names) > 1:
        return f"0 … {len(names) - 1}"
    numbered = [f"{number} {name if len(name) <= _LINE else name[:_LINE] + '…'}" for number, name in enumerate(names)]
    shown = numbered if len(numbered) <= _SHOWN else [*numbered[: _SHOWN - 1], "…", numbered[-1]]
    return printable(", ".join(shown))


def could_be_labels(shape: Sequence[int], kind: str, count: int) -> bool:
    """Whether an array or column of `count` rows could be labels: one whole number or text for each image. kind: numpy's."""
    return tuple(shape) in ((count,), (count, 1)) and kind in "iuUSO"


def read_labels(values: np.ndarray, count: int, name: str) -> tuple[np.ndarray | None, list[str], list[str]]:
    """(labels int64 (count,), class names, notes). −1 is no label. The names are empty unless the values are texts.

    Whole numbers, also as floats, are taken as they are; −1 or a missing value (NaN) is no label. Texts become classes in natural
    order; an empty text is no label. None if no image has a label.

    Raises ValueError, calling the values `name`, for other values."""
    values = np.asarray(values)
    values = values.reshape(count) if values.shape == (count, 1) else values
    if values.shape != (count,):
        raise ValueError(f"{name}: labels must be {count} whole numbers, got {values.dtype} {values.shape}")
    names: list[str] = []
    textual = values.dtype.kind in "US"
    if values.dtype.kind == "O":  # an array of texts would give each of them the room of the longest
        _check_single(values, name)
        textual = any(isinstance(value, str | bytes) for value in values)
        values = values if textual else np.array([-1 if _missing(value) else value for value in values])
    if textual:
        texts = [text_of(value, f"{name}: the label of image {row}") for row, value in enumerate(values)]
        known = {text for text in texts if text and text != "-1"}
        names = sorted(known, key=lambda text: (natural(text), text))
        number = {text: index for index, text in enumerate(names)}
        labels = np.array([number.get(text, -1) for text in texts], dtype=np.int64)
    elif values.dtype.kind in "iuf":
        values = _whole(values, name)
        if int(values.max()) >= _MOST_CLASSES or int(values.min()) < -1:
            wrong = int(values.max()) if int(values.max()) >= _MOST_CLASSES else int(values.min())
            raise ValueError(
                f"{name}: labels must be class numbers from 0 to {_MOST_CLASSES - 1}, or −1 for none, got {wrong}: number "
                "the classes 0, 1, 2 …"
            )
        labels = values.astype(np.int64)
    else:
        raise ValueError(f"{name}: labels must be {count} whole numbers, or texts, got {values.dtype} {values.shape}")
    none = int((labels < 0).sum())
    if none == count:
        return None, [], [f"no image has a label: {name} is −1 throughout"]
    notes = [f"without a label (−1 in {name}): {none} of {count} images; the others keep theirs"] if none else []
    return labels, names, notes


def _check_single(values: np.ndarray, name: str) -> None:
    """Raises ValueError where a label is a list or the like."""
    for row, value in enumerate(values):
        if hasattr(value, "__len__") and not isinstance(value, str | bytes):
            raise ValueError(
                f"{name}: the label of image {row} is {with_article(type(value).__name__)}: labels are one whole number or "
                "text for each image"
            )


def _whole(values: np.ndarray, name: str) -> np.ndarray:
    """Floats that are whole numbers as int64, NaN being −1; whole numbers as they are."""
    if values.dtype.kind != "f":
        return values
    known = np.where(np.isnan(values), -1, values)
    wrong = np.flatnonzero((known != np.floor(known)) | (np.abs(known) > 1e15))
    if len(wrong):
        raise ValueError(
            f"{name}: labels must be whole numbers, or texts, and that of image {wrong[0]} is {known[wrong[0]]:g}: number the "
            "classes 0, 1, 2 …"
        )
    return known.astype(np.int64)


def text_of(value: object, name: str) -> str:
    """Raises ValueError, calling the value `name`, for bytes that are no text."""
    try:
        return value.decode() if isinstance(value, bytes) else "" if _missing(value) else str(value)
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} is no text in UTF-8: save it as text, or number the classes 0, 1, 2 …") from error


def _missing(value: object) -> bool:
    return value is None or value != value  # NaN


class Classified(Protocol):
    """A model of classes. It has class_names, too, if it keeps them."""

    @property
    def num_classes(self) -> int: ...


def compare_classes(
    data_names: Sequence[str],
    labels: np.ndarray,
    model: Classified,
    *,
    data: str,
    who: str = "the model",
    remedy: str = "",
) -> tuple[np.ndarray | None, str | None]:
    """(numbers, line). numbers: int64 (classes,), the model's number of each class of the data, or None where they are
    equal. line: what a user is told, or None.

    A class without images that the model lacks has −1. data_names: of the data, empty if unknown. model: has num_classes,
    and class_names if it keeps them. data, who, remedy: words for the lines and errors. Raises ValueError, naming the class,
    for images of a class that the model does not know."""
    own: list[str] = list(getattr(model, "class_names", None) or [])
    count = max(int(labels.max(initial=-1)) + 1, len(data_names))
    if not own or not data_names:
        if count > model.num_classes:
            last = model.num_classes - 1
            raise ValueError(f"{data} has {count} classes, and {who} knows only the numbers 0 … {last}{remedy}")
        silent = f"{who} keeps" if not own else "the data have"
        return None, f"no class names were compared, for {silent} none: class numbers are taken as they are"
    if list(data_names) == own:
        return None, None
    used = sorted(set(labels[labels >= 0].tolist()))
    _check_names([data_names[number] for number in used], data_names, own, data, who, remedy)
    numbers = np.array([own.index(name) if name in own else -1 for name in data_names], dtype=np.int64)
    moved = [f"{data_names[number]} {number} → {numbers[number]}" for number in used if numbers[number] != number]
    if not moved:
        return numbers, None
    shown = ", ".join(moved[:_SHOWN]) + (", …" if len(moved) > _SHOWN else "")
    return numbers, f"classes are matched with those of {who} by name: {shown}"


def match_classes(
    data_names: Sequence[str], labels: np.ndarray, model: Classified, *, data: str, **words: str
) -> np.ndarray | None:
    """The numbers of `compare_classes`. Its line goes to the log."""
    numbers, line = compare_classes(data_names, labels, model, data=data, **words)
    tell([] if line is None else [line], data)
    return numbers


def _check_names(names: list[str], data_names: Sequence[str], own: list[str], data: str, who: str, remedy: str) -> None:
    """Raises ValueError for a class name of the data that the model does not know, or that stands for several classes."""
    unknown = [name for name in names if name not in own]
    if unknown:
        which = f"the class{'es' * (len(unknown) > 1)} {', '.join(unknown[:_SHOWN])}"
        known = f"it knows {listed_classes(own)}"
        raise ValueError(printable(f"{data} has {which}, which {who} does not know: {known}{remedy}"))
    twice = [name for name in names if own.count(name) > 1 or list(data_names).count(name) > 1]
    if twice:
        raise ValueError(
            printable(
                f"{data} numbers its classes otherwise than {who}, and {twice[0]} is the name of more than one, so they cannot "
                f"be matched by name{remedy}"
            )
        )
