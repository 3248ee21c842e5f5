"""Moderate what a service keeps: the queue, reports, the record, keys and the policy. One file for each kind of work."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from jsonargparse import Namespace

from ctm.commands.moderate import keys, policies, queue, records
from ctm.safety.extra import installed
from ctm.terminal.parser import Parser, command_parser

__all__ = ["add_subcommands", "arrange", "parser", "run"]


@dataclass(frozen=True)
class _Task:
    """One kind of work. parser: its options; run: does it."""

    parser: Callable[[], Parser]
    run: Callable[[Namespace], None]


_TASKS = {
    "list": _Task(queue.list_parser, queue.show_list),
    "show": _Task(queue.show_parser, queue.show),
    "release": _Task(queue.release_parser, queue.release),
    "reject": _Task(queue.reject_parser, queue.reject),
    "delete": _Task(queue.delete_parser, queue.delete),
    "reports": _Task(queue.reports_parser, queue.reports),
    "expire": _Task(queue.expire_parser, queue.expire),
    "verify": _Task(records.verify_parser, records.verify_record),
    "export": _Task(records.export_parser, records.export),
    "policy": _Task(policies.policy_parser, policies.policy),
    "block": _Task(policies.block_parser, policies.block),
    "keys": _Task(keys.parser, keys.run),
}


def parser() -> Parser:
    return command_parser(
        "moderate",
        "Decide about held pictures, answer reports, check the record, and manage keys and the policy of a service's state.",
        "ctm moderate list --state runs/serve",
    )


def add_subcommands(own: Parser) -> None:
    """Add one subcommand for each kind of work. It is called after the command itself has its place."""
    kinds = own.add_subcommands(required=True, dest="task")
    for name, task in _TASKS.items():
        kind = task.parser()
        kinds.add_subcommand(name, kind, help=kind.description)
        if name == "keys":
            keys.add_subcommands(kind)


def arrange(arguments: list[str]) -> list[str]:
    """The arguments with --state behind the kind of work, so that `ctm moderate --state DIR list` is accepted too."""
    at = arguments.index("moderate") + 1
    before, after = arguments[:at], arguments[at:]
    for length, found in ((2, after[:1] == ["--state"]), (1, bool(after) and after[0].startswith("--state="))):
        if found:
            return [*before, *after[length:], *after[:length]]
    return arguments


def run(settings: Namespace) -> None:
    """Do one kind of work on a state."""
    with installed():
        _TASKS[settings.task].run(settings[settings.task])
