"""`--objectives.0.grid_points 10`: one setting of one entry of a recipe's list, on the command line."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

import yaml
from jsonargparse import ArgumentParser, Namespace

from ctm.terminal.known_classes import settings_of
from ctm.terminal.wording import LISTS, value_mistake

__all__ = ["SetEntry", "as_settings"]

_OPTION = "--list_entry"
_ENTRY = re.compile(rf"--(?P<path>(?:{'|'.join(LISTS)})\.(?:\d+|[A-Z]\w*)(?:\.[^=]+)?)(?:=(?P<value>.*))?", re.DOTALL)


def as_settings(arguments: Sequence[str]) -> list[str]:
    """The arguments with each `--LIST.ENTRY.NAME VALUE` or `--LIST.ENTRY.NAME=VALUE` in the form that `SetEntry` takes.
    ENTRY is a number from 0 or the name of a class. Raises ValueError for a missing value."""
    result, rest = [], list(arguments)
    while rest:
        argument = rest.pop(0)
        option = _ENTRY.fullmatch(argument)
        if option is None:
            result.append(argument)
            continue
        value = option["value"]
        if value is None:
            if not rest or rest[0].startswith("--"):
                raise ValueError(f"{argument} needs a value: {argument} VALUE")
            value = rest.pop(0)
        if not value.strip():
            raise ValueError(f"{argument} needs a value after it, got none: null where the setting may be unset")
        result.append(f"{_OPTION}={option['path']}={value}")
    return result


class SetEntry(argparse.Action):
    """Sets the value of one entry on top of the options before it. So a later option wins, as everywhere."""

    @classmethod
    def add_to(cls, parser: ArgumentParser) -> None:
        """Make the parser take what `as_settings` returns; no help shows that spelling."""
        parser.add_argument(_OPTION, action=cls, default=argparse.SUPPRESS, help=argparse.SUPPRESS)

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        path, _, text = str(values).partition("=")
        field, *keys = path.split(".")
        entries = _plain(namespace.get(field))
        if not isinstance(entries, list):
            raise ValueError(f"--{path}: {field} is no list here: give --config before it, or --{field} as a whole")
        try:
            _set(entries, keys, yaml.safe_load(text), f"--{path}")
            parser._option_string_actions[f"--{field}"](parser, namespace, json.dumps(entries), f"--{field}")
        except (TypeError, argparse.ArgumentError, yaml.YAMLError) as error:
            reason = " ".join(str(error).split()).rpartition("Parser key ")[2]
            raise ValueError(value_mistake(str(error), option=f"--{path}") or f"--{path} {text}: {reason}") from error


def _plain(value: object) -> Any:
    """Namespaces, and lists of them, as new dictionaries and lists."""
    if isinstance(value, Namespace):
        return {key: _plain(inner) for key, inner in vars(value).items()}
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value


def _set(node: object, keys: list[str], value: Any, option: str) -> None:
    """Put the value at the place the keys lead to, in nested lists and entries. `init_args` between keys may be left out."""
    key, *further = keys
    if _is_entry(node) and key == "init_args" and further:
        key, *further = further
    holder, place = _holder(node, key, option)
    if not further:
        holder[place] = value
        return
    inside = holder[place] if isinstance(holder, list) else holder.get(place)
    if not isinstance(inside, list | dict):
        whole = f"{option.removesuffix('.' + '.'.join(further))} '{{class_path: …, init_args: …}}'"
        raise ValueError(f"{option}: the recipe gives no {place} that has settings: give it whole, {whole}")
    _set(inside, further, value, option)


def _is_entry(node: object) -> bool:
    return isinstance(node, dict) and "class_path" in node


def _holder(node: Any, key: str, option: str) -> tuple[Any, Any]:
    """The list or dictionary that holds `key` of the node, and the place in it. Raises ValueError naming what is there."""
    if isinstance(node, list):
        return node, _index(node, key, option)
    if not _is_entry(node):
        return node, key
    name = _class_name(node)
    if key in ("class_path", "init_args"):
        raise ValueError(f"{option}: {key} comes with all of an entry: '{{class_path: …, init_args: …}}'")
    known = settings_of(node["class_path"])
    if known is not None and key not in known:
        near = get_close_matches(key, known, 1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise ValueError(f"{option}: {name} has no setting {key}{hint}: it has {', '.join(known) or 'none'}")
    if node.get("init_args") is None:
        node["init_args"] = {}
    return node["init_args"], key


def _index(entries: list[Any], key: str, option: str) -> int:
    """The index of the entry with that number, or of the only entry of that class. Raises ValueError naming the entries
    there are."""
    names = [_class_name(entry) if _is_entry(entry) else str(entry) for entry in entries]
    listed = ", ".join(f"{number} {name}" for number, name in enumerate(names)) or "none"
    places = [number for number, name in enumerate(names) if key in (str(number), name)]
    if not places:
        raise ValueError(f"{option}: there is no entry {key}, there is: {listed}")
    if len(places) > 1:
        raise ValueError(f"{option}: {len(places)} entries are called {key}, give the number: {listed}")
    return places[0]


def _class_name(entry: Mapping[str, object]) -> str:
    return str(entry["class_path"]).rpartition(".")[2]
