"""Text from elsewhere, JSON and YAML, read within bounds of size, depth and aliases."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import IO, Any, NoReturn, TypeAlias

import yaml

__all__ = [
    "JSONObject",
    "check_yaml",
    "parse_json",
    "plain",
    "raised",
    "read_json",
    "read_text",
    "read_yaml",
    "text_in",
    "with_article",
]

# An object of a JSON file, as it was read: whoever reads one looks at what it holds before using it.
JSONObject: TypeAlias = dict[str, Any]

MOST_BYTES = 1 << 20  # the longest of the shipped files has 4 kB
MOST_DEPTH = 50
_TOKENS = re.compile(r'[][{}"]|\\.', re.DOTALL)  # of JSON: what opens, closes or quotes; what a backslash takes away
MOST_NODES = 20_000  # values of a YAML file, those behind an alias counted at each use


def plain(text: object, limit: int = 80) -> str:
    """A stranger's text for a message: one line of printable characters, at most `limit`."""
    given = text if isinstance(text, str) else with_article(type(text).__name__)
    shown = "".join(letter if letter.isprintable() else " " for letter in given[: 4 * limit])
    shown = " ".join(shown.split())
    return shown if len(shown) <= limit else f"{shown[:limit]}…"


def with_article(name: str) -> str:
    """The name of a class after a or an, as it is said: an MLP, an int, a UNet1d, a dict."""
    spelled = name[:2].isupper()  # letter by letter
    return f"an {name}" if name[:1] in ("AEFHILMNORSX" if spelled else "AEIOaeio") else f"a {name}"


def raised(error: BaseException, limit: int = 200) -> str:
    """What a stranger's code raised, for a message: its class and its text, as `plain`. Its text may itself fail to be made."""
    try:
        text = str(error)
    except Exception:
        text = "its text cannot be shown"
    name = type(error).__name__
    return plain(f"{name}: {text}" if text else name, limit)


def read_text(path: Path, most: int = MOST_BYTES) -> str:
    """The text of a file of at most `most` bytes (1 MB). Raises ValueError for a longer file and for one that is not UTF-8."""
    with path.open("rb") as file:
        return text_in(file, str(path), most)


def text_in(file: IO[bytes], name: str, most: int = MOST_BYTES) -> str:
    """The text of an open file. At most `most` bytes are read. Raises ValueError as `read_text`."""
    content = file.read(most + 1)
    if len(content) > most:
        raise ValueError(f"{name} is longer than {most >> 20} MB, more than such a file has")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} is no text in UTF-8 ({error.reason} at byte {error.start})") from error


def read_json(path: Path, most: int = MOST_BYTES, *, infinite: bool = False) -> Any:
    """The value in a JSON file of at most `most` bytes (1 MB). Raises ValueError as `read_text` and `parse_json`."""
    return parse_json(read_text(path, most), str(path), infinite=infinite)


def parse_json(text: str, name: str, *, infinite: bool = False) -> Any:
    """The value of a JSON text. name: of the file, for the sentence. infinite: whether it may have Infinity and -Infinity, as
    diffusers writes them.

    Raises ValueError with a sentence for a text that is no JSON, gives a name twice, has a number that is not finite, or is
    nested deeper than 50."""

    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        values: JSONObject = {}
        for key, value in pairs:
            if key in values:
                raise ValueError(f"{plain(key)!r} is given twice")
            values[key] = value
        return values

    def number(digits: str) -> float:
        value = float(digits)
        return refuse(digits) if value - value != 0 else value

    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"{constant} is no finite number")

    def constant(word: str) -> float:
        return float(word) if infinite and word != "NaN" else refuse(word)

    try:
        _check_depth(text)
        value = json.loads(text, object_pairs_hook=unique, parse_float=number, parse_constant=constant)
    except ValueError as error:
        raise ValueError(f"{name} is not readable as JSON: {plain(str(error), 200)}") from error
    return value


def _check_depth(text: str) -> None:
    """Raises ValueError where lists and objects of a JSON text are nested deeper than 50, before any of them is made: they take
    thirty times as much memory as the text. Brackets in strings do not count."""
    if text.count("[") + text.count("{") <= MOST_DEPTH:
        return
    depth, quoted = 0, False
    for token in _TOKENS.finditer(text):
        letter = token[0]
        if letter == '"':
            quoted = not quoted
        elif not quoted and letter in "[{":
            depth += 1
            if depth > MOST_DEPTH:
                raise ValueError(f"it is nested deeper than {MOST_DEPTH}")
        elif not quoted and letter in "]}":
            depth -= 1


def read_yaml(path: Path) -> Any:
    """The value in a YAML file. Raises ValueError as `check_yaml` and `read_text`."""
    text = read_text(path)
    check_yaml(text, str(path))
    return yaml.safe_load(text)


def check_yaml(text: str, name: str) -> None:
    """Raises ValueError, naming the file, for a text that is no YAML, asks for objects, gives a key of a mapping twice, is
    nested deeper than 50, or has more than 20,000 values with aliases written out. The next reader walks all of these
    values."""
    walk = _Walk(name)
    try:
        for event in yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
            walk.take(event)
    except yaml.YAMLError as error:
        raise ValueError(f"{name} is not readable as YAML: {plain(str(error), 200)}") from error


class _Open:
    """A list or mapping that has begun: its anchor, the number of its values so far, and the keys of a mapping."""

    def __init__(self, anchor: str | None, size: int, mapping: bool) -> None:
        self.anchor, self.size, self.mapping = anchor, size, mapping
        self.children, self.keys = 0, set[str]()

    def key_is_next(self) -> bool:
        """Whether the next value is a key. The value is counted."""
        self.children += 1
        return self.mapping and self.children % 2 == 1


class _Walk:
    """The events of a YAML file, checked one by one."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.sizes: dict[str, int] = {}
        self.scalars: dict[str, str] = {}
        self.open = [_Open(None, 0, mapping=False)]

    def take(self, event: object) -> None:
        """Raises ValueError if the file must be refused at this event."""
        self._check_tag(getattr(event, "tag", None))
        if isinstance(event, yaml.events.CollectionEndEvent):
            ended = self.open.pop()
            self.open[-1].size += ended.size
            if ended.anchor:
                self.sizes[ended.anchor] = ended.size
                self.scalars.pop(ended.anchor, None)
        elif isinstance(event, yaml.events.NodeEvent):
            self._node(event)
        if self.open[-1].size > MOST_NODES or len(self.open) > MOST_DEPTH:
            raise ValueError(
                f"{self.name} has more than {MOST_NODES} values with its aliases written out, or is nested "
                f"deeper than {MOST_DEPTH}"
            )

    def _node(self, event: Any) -> None:
        key = self.open[-1].key_is_next()
        if isinstance(event, yaml.events.CollectionStartEvent):
            self.open.append(_Open(event.anchor, 1, isinstance(event, yaml.events.MappingStartEvent)))
            return
        if isinstance(event, yaml.events.AliasEvent):
            if event.anchor not in self.sizes:
                raise ValueError(
                    f"{self.name} has an alias {plain(event.anchor)!r} for what is not there, or for itself"
                )
            size, text = self.sizes[event.anchor], self.scalars.get(event.anchor)
        else:
            size, text = 1, event.value
            if event.anchor:
                self.sizes[event.anchor], self.scalars[event.anchor] = size, text
        self.open[-1].size += size
        if key and text is not None:
            if text in self.open[-1].keys:
                raise ValueError(f"{self.name} gives the key {plain(text)!r} twice: keep one of them")
            self.open[-1].keys.add(text)

    def _check_tag(self, tag: str | None) -> None:
        standard = tag is None or tag == "!" or tag.startswith("tag:yaml.org,2002:")
        if not standard or str(tag).startswith("tag:yaml.org,2002:python"):
            raise ValueError(f"{self.name} asks for an object ({plain(tag)}): a recipe has plain values only")
