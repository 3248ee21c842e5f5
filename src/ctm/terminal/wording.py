"""What the parser says of a mistake, as a sentence: which option, what could be given, and what was given."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from difflib import get_close_matches

from jsonargparse import ArgumentParser

from ctm.foreign.text import plain, with_article
from ctm.terminal.known_classes import fitting_classes, settings_of

__all__ = ["LISTS", "mistake", "value_mistake"]

_KEY = re.compile(r'Parser key "([^"]+)"')
_TYPES = {
    "int": "a whole number",
    "float": "a finite number",
    "bool": "true or false",
    "str": "a text",
    "list": "a list such as [a, b]",
    "tuple": "a list such as [a, b]",
    "dict": "settings by name",
    "NoneType": "null",
}
_EXPECTED = re.compile(
    r"Expected an? <class '([\w.]+)'>|Expected a typing\.Literal\[([^\]]*)\]"
    r"|(Not a valid subclass of \w+|Expected an import path)"
)
_GIVEN = re.compile(r"(?:Got|Given) value: (.*?)(?=\. Got value: |\n|$)")
LISTS = ("objectives", "ema", "trackers", "loss_factors")  # settings of a recipe that are lists
_QUOTES = " '\""
_LONGEST = 120  # characters of a value


def mistake(message: str, parser: ArgumentParser) -> str | None:
    """The sentence for a message of the parser; None for a message that is one already."""
    for pattern, words in _PATTERNS:
        found = re.search(pattern, message, re.DOTALL)
        if found is not None:
            return words(found, parser)
    return value_mistake(message, parser)


def value_mistake(message: str, parser: ArgumentParser | None = None, option: str | None = None) -> str | None:
    """The sentence for a value that its setting does not take; None for another message. option: the setting's name where the
    message has only the end of it."""
    keys = _KEY.findall(message)
    if not keys:
        return None
    name = option or _whole_name(keys, message)
    unknown = re.search(r"Option '([^']+)' is not accepted", message)
    if unknown is not None:
        return _no_setting(unknown[1], f"{name}{_between(message)}{unknown[1]}", message)
    value = _value(message)
    hint = _hint_of(parser, keys[0]) if len(keys) == 1 else None
    lacking = re.search(r"Expected a dot import path string: (\S+)|module '(\S+)' has no attribute '(\w+)'", message)
    absent = re.search(r"No module named '([^']+)'", message)
    if absent is not None:
        return f"{name}: importing {_class_path(message) or 'its module'} failed: there is no module {plain(absent[1])}"
    allowed = _allowed(message)
    if lacking is not None and (len(keys) == 1 or lacking[2] or not allowed):
        known = fitting_classes(hint)
        if hint is not None and not known:
            return f"{name} must be given by its settings, as {name}.NAME VALUE, got {value}"
        called = lacking[1] or f"{lacking[2]}.{lacking[3]}"
        return f"{name} {plain(called)}: there is no such class{_instead(called.rpartition('.')[2], known)}"
    if not allowed:
        return None
    if len(keys) > 1:  # null would unset the whole, not this setting of it
        allowed = [words for words in allowed if words != "null"] or allowed
    if hint is not None and "list[" in str(hint) and _TYPES["list"] not in allowed:
        name, allowed = f"an entry of {name}", [words for words in allowed if words != "null"]
    return f"{name} must be {' or '.join(allowed)}, got {value}"


def _whole_name(keys: Sequence[str], message: str) -> str:
    """The option of nested keys: --optimizer.init_args.lr of optimizer and lr."""
    return "--" + _between(message).join(dict.fromkeys(keys))


def _between(message: str) -> str:
    problem = re.search(r"Problem with given class_path '([^']+)'", message)
    if problem is None:
        return ".init_args."
    entry = _KEY.search(message)
    return f".{problem[1].rpartition('.')[2]}." if entry is not None and entry[1] in LISTS else "."


def _no_setting(setting: str, name: str, message: str) -> str:
    path = _class_path(message)
    known = (path and settings_of(path)) or []
    owner = path.rpartition(".")[2] if path else "it"
    if setting in known and name.startswith("--network."):  # two arguments are ctm's, the others are settings
        call = f"{owner}(shape, num_classes, …)"
        return f"--network {owner}: its constructor must take shape and num_classes first, then its settings: {call}"
    return f"{name}: {owner} has no setting {plain(setting)}{_instead(setting, known, 'it has')}"


def _class_path(message: str) -> str | None:
    found = re.search(r"class_path[= ]'([^']+)'", message)
    return plain(found[1]) if found else None


def _value(message: str) -> str:
    """The value that was given, cut where it is long."""
    inner = message[message.rfind('Parser key "') :]
    found = [text for text in _GIVEN.findall(inner) if not text.startswith(("Namespace(", "NestedArg("))]
    text = plain(found[0], _LONGEST) if found else "something else"
    return "null" if text == "None" else text


def _allowed(message: str) -> list[str]:
    """What could be given, in words, in the order of the message."""
    inner = message[message.rfind('Parser key "') :]
    words: list[str] = []
    for kind, choices, base in _EXPECTED.findall(inner):
        if choices:
            words.append(f"one of {', '.join(part.strip(_QUOTES) for part in choices.split(','))}")
        elif base:
            words.append("a class with its settings")
        else:
            words.append(_TYPES.get(kind.rpartition(".")[2], with_article(kind.rpartition(".")[2])))
    return list(dict.fromkeys(words))


def _hint_of(parser: ArgumentParser | None, key: str) -> object:
    """The type of a setting, None where the parser does not have it."""
    for action in getattr(parser, "_actions", ()):
        if action.dest == key:
            return getattr(action, "_typehint", None)
    return None


def _instead(name: str, known: Sequence[str], there: str = "there are") -> str:
    near = get_close_matches(name, known, 2, cutoff=0.6)
    if near:
        return f": did you mean {' or '.join(near)}?"
    return f": {there} {', '.join(known)}" if known else ""


def _needs_value(found: re.Match[str], parser: ArgumentParser) -> str:
    option = found[1].split("/")[0]
    return f"{option} needs a value after it: {option} VALUE"


def _no_value(found: re.Match[str], parser: ArgumentParser) -> str:
    return f"{found[1].split('/')[-1]} takes no value, got {plain(found[2])}"


def _no_choice(found: re.Match[str], parser: ArgumentParser) -> str:
    known = [part.strip(_QUOTES) for part in found[3].split(",")]
    return f"there is no {found[1]} {plain(found[2])}{_instead(found[2], known)}"


def _none_chosen(found: re.Match[str], parser: ArgumentParser) -> str:
    *commands, kind = found[1].split(".")
    subcommands = _parser_of(parser, commands)._subcommands_action
    listed = ", ".join([] if subcommands is None else subcommands._name_parser_map)
    if not commands:
        return f"there is no {kind}: give one of {listed}"
    return f"{' '.join(commands)} needs a {kind} after it: {listed} (see ctm {' '.join(commands)} --help)"


def _unknown(found: re.Match[str], parser: ArgumentParser) -> str:
    left = found[1].split()
    options = [word.partition("=")[0] for word in left if word.startswith("-")]
    if not options:
        return f"{plain(' '.join(left))} is one argument too many"
    known = [option for option in parser._option_string_actions if option.startswith("--") and not option.endswith("+")]
    begun = [option for option in known if option.startswith(options[0])]
    near = begun if len(begun) == 1 else get_close_matches(options[0], known, 2, cutoff=0.75)
    hint = f": did you mean {' or '.join(near)}?" if near else ""
    return f"there is no option {plain(options[0])}{hint}"


def _required(found: re.Match[str], parser: ArgumentParser) -> str:
    missing = [name.strip() for name in found[1].split(",")]
    commands: list[str] = []
    own = parser
    while (subcommands := getattr(own, "_subcommands_action", None)) is not None:
        word = missing[0].split(".")[len(commands)]
        commands.append(word)
        own = subcommands._name_parser_map[word]
    names = [name.split(".", len(commands))[-1] for name in missing]
    if commands == ["train"]:
        if "network" in names:
            return (
                "train needs a recipe: --config RECIPE, a file or a name that ctm recipes lists (see ctm train --help)"
            )
        return f"the recipe lacks {', '.join(names)}: set it in the file, or give --{names[0]} VALUE (see ctm train --help all)"
    positional = {action.dest for action in own._actions if not action.option_strings}
    shown = [name.upper() if name in positional else f"--{name} {name.upper()}" for name in names]
    return f"{' '.join(commands)} needs {' and '.join(shown)} (see ctm {' '.join(commands)} --help)"


def _no_entry(found: re.Match[str], parser: ArgumentParser) -> str:
    own = _parser_of(parser, [found[1]])
    near = get_close_matches(found[2], [action.dest for action in own._actions], 1, cutoff=0.7)
    return f"the recipe sets {plain(found[2])}, which is no setting{f': did you mean {near[0]}?' if near else ''}"


def _no_recipe(found: re.Match[str], parser: ArgumentParser) -> str:
    return f"the recipe holds no settings, such as steps: 1000, but {plain(found[1].strip(), 40) or 'nothing'}"


def _group(found: re.Match[str], parser: ArgumentParser) -> str:
    known = [option for option in parser._option_string_actions if option.startswith(f"--{found[1]}.")]
    return f"--{found[1]} is a group of settings: give each by its own name, as {known[0]} {plain(found[2])}"


def _parser_of(parser: ArgumentParser, commands: Sequence[str]) -> ArgumentParser:
    for word in commands:
        assert parser._subcommands_action is not None
        parser = parser._subcommands_action._name_parser_map[word]
    return parser


_PATTERNS: list[tuple[str, Callable[[re.Match[str], ArgumentParser], str]]] = [
    (r"^argument (\S+): expected (?:one|at least one) argument", _needs_value),
    (r"^argument (\S+): ignored explicit argument '(.*)'$", _no_value),
    (r"^argument (\w+): invalid choice: '(.*)' \(choose from (.*)\)$", _no_choice),
    (r'^expected "([\w.]+)" to be one of .* it was not provided', _none_chosen),
    (r"^unrecognized arguments: (.*)$", _unknown),
    (r"^the following arguments are required: (.*)$", _required),
    (r"^Subcommand '(\w+)' does not accept option '([^']+)'", _no_entry),
    (r"^Unexpected config: (.*)$", _no_recipe),
    (r'^Parser key "(\w+)":\s+Unable to load config \'(.*?)\'', _group),
]
