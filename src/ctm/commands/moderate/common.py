"""What every kind of moderation shares: the state, the moderator's name, and tables."""

from __future__ import annotations

import getpass
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import Namespace
from rich.box import SIMPLE
from rich.table import Table

from ctm.terminal.parser import Parser, command_parser

if TYPE_CHECKING:
    from ctm.safety import State, Store

__all__ = [
    "DEFAULT_STATE",
    "add_by",
    "add_reason",
    "opened",
    "read_only",
    "table",
    "user_name",
    "words_of",
    "work_parser",
]

DEFAULT_STATE = "runs/serve"


def work_parser(name: str, description: str, example: str) -> Parser:
    """A parser with --state."""
    result = command_parser(f"moderate {name}", description, f"ctm moderate {name}{example and ' '}{example}")
    words = "directory of the service's state (its database: service.sqlite3 there, or the URL in CTM_DATABASE)"
    result.add_argument("--state", type=str, default=DEFAULT_STATE, help=words)
    return result


def add_by(parser: Parser) -> None:
    """Who decides."""
    parser.add_argument(
        "--by", type=str, default=user_name(), help="who decides, for the record (default: your user name)"
    )


def add_reason(parser: Parser) -> None:
    """Why, and who decides."""
    parser.add_argument("--reason", type=str, default=None, help="why, for the record")
    add_by(parser)


@contextmanager
def opened(settings: Namespace) -> Iterator[State]:
    """The state, to be changed."""
    from ctm.safety import State

    state = State.open(_there(settings))
    try:
        yield state
    finally:
        state.store.close()


@contextmanager
def read_only(settings: Namespace) -> Iterator[tuple[Path, Store]]:
    """(the state's directory, its store without the key that signs): to be read, also where the record is damaged."""
    from ctm.safety import Store
    from ctm.safety.state import database_url

    folder = _there(settings)
    store = Store(database_url(folder))
    try:
        yield folder, store
    finally:
        store.close()


def table(*names: str) -> Table:
    """An empty table."""
    return Table(*names, box=SIMPLE, padding=(0, 1, 0, 0))


def _there(settings: Namespace) -> Path:
    """The state's directory. Raises ValueError where there is none: moderating makes no state."""
    from ctm.safety.state import is_there

    folder = Path(settings.state)
    if not is_there(folder):
        raise ValueError(
            f"--state {folder} is no state of a service, with keys and a database: give the directory that ctm serve, ctm sample "
            "--policy or ctm moderate keys add has made"
        )
    return folder


def user_name() -> str:
    """The name of the user who runs the command."""
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):
        return f"user {os.getuid()}" if hasattr(os, "getuid") else "unknown"


def words_of(values: dict[str, Any]) -> str:
    """Values in one line: name value, name value."""
    return ", ".join(f"{name} {value}" for name, value in values.items() if value is not None)
