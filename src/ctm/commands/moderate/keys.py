"""API keys: added, listed, revoked."""

from __future__ import annotations

from pathlib import Path

from jsonargparse import Namespace

from ctm.commands.moderate.common import add_by, opened, table, work_parser
from ctm.console import text_console
from ctm.data.notes import printable
from ctm.terminal.parser import Parser, command_parser

__all__ = ["add_subcommands", "parser", "run"]


def parser() -> Parser:
    return command_parser(
        "moderate keys",
        "Add, list or revoke the API keys of a service.",
        'ctm moderate keys add "Ann" --role moderator',
    )


def add_subcommands(own: Parser) -> None:
    """Add the kinds of work with keys."""
    kinds = own.add_subcommands(required=True, dest="change")
    for name, kind in (("add", _add_parser()), ("list", _list_parser()), ("revoke", _revoke_parser())):
        kinds.add_subcommand(name, kind, help=kind.description)


def run(settings: Namespace) -> None:
    """Work with the keys of a state."""
    {"add": _add, "list": _list, "revoke": _revoke}[settings.change](settings[settings.change])


def _add_parser() -> Parser:
    result = work_parser(
        "keys add", "Make a key and print it, this once. It makes the state if there is none.", "Ann --per_minute 30"
    )
    result.add_argument("holder", type=str, help="who gets it, a name for lists and the record")
    result.add_argument("--role", type=str, default="user", help="user or moderator")
    result.add_argument(
        "--per_minute", type=int, default=None, help="images a minute (default: the policy's for the role)"
    )
    result.add_argument("--per_day", type=int, default=None, help="images a day (default: the policy's for the role)")
    return result


def _list_parser() -> Parser:
    return work_parser("keys list", "List the keys: ids, names, roles and limits, never the keys themselves.", "")


def _revoke_parser() -> Parser:
    result = work_parser("keys revoke", "End a key from now on.", "ID")
    result.add_argument("id", type=str, help="the key's id, as keys list shows it")
    add_by(result)
    return result


def _add(settings: Namespace) -> None:
    from ctm.safety import Policy, State

    state = State.open(Path(settings.state))
    try:
        given = {name: settings[name] for name in ("per_minute", "per_day") if settings[name] is not None}
        usual = getattr(state.policy.rates, settings.role, state.policy.rates.user)
        rate = Policy.of({"rates": {"user": usual.model_dump() | given}}, "the limits").rates.user if given else None
        text = state.keys.create(settings.holder, settings.role, rate)
    finally:
        state.store.close()
    print(text)
    print("This is the only time that the key is shown.")


def _list(settings: Namespace) -> None:
    with opened(settings) as state:
        shown = table("id", "name", "role", "images a minute", "a day", "made", "revoked")
        keys = state.keys.list()
        for key in keys:
            rate = state.policy.rate_of(key)
            times = ["" if time is None else f"{time:%Y-%m-%d %H:%M:%S}" for time in (key.created, key.revoked)]
            shown.add_row(key.id, printable(key.name), key.role, str(rate.per_minute), str(rate.per_day), *times)
    if keys:
        text_console(wide=True).print(shown)
    else:
        print("no keys: ctm moderate keys add NAME makes one")


def _revoke(settings: Namespace) -> None:
    with opened(settings) as state:
        state.keys.revoke(settings.id, settings.by)
    print(f"the key {settings.id} is revoked")
