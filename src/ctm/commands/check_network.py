"""Check a network, your own or one of ctm's, before a run is spent on it."""

from __future__ import annotations

from typing import Any

from jsonargparse import Namespace

from ctm.conditioner import Arrays, Labels
from ctm.console import text_console
from ctm.networks.arguments import check_shape
from ctm.networks.description import network_class
from ctm.terminal.parser import Parser, command_parser
from ctm.training.network_checks import check_network
from ctm.training.recipe import NetworkDescription, built_for

__all__ = ["parser", "run"]


def parser() -> Parser:
    result = command_parser(
        "check-network",
        "Build a network and check five things: what its call returns, that samples do not depend on their batch, that a student "
        "starts as its teacher, that conditions can be absent, and its derivatives. docs/networks.md says what each is for.",
        "ctm check-network mynets.Net --shape 3,32,32 --num_classes 10 --allow mynets",
    )
    add = result.add_argument
    add("network", type=str, help="its class: DDPMpp, or mynets.Net with --allow mynets")
    add("--shape", type=str, required=True, help="of one sample: 3,32,32 or 2,16 or 20")
    add("--num_classes", type=int, default=0, help="of labels, 0: none")
    add("--arrays", type=dict[str, list[int]], default=None, help="fields of its condition: '{observation: [20]}'")
    add("--init_args", type=dict[str, Any], default=None, help="its settings: '{channels: 64, blocks: 2}'")
    return result


def run(settings: Namespace) -> None:
    """Build, check, print a line for each check. Raises ValueError where one has failed."""
    shape = check_shape([_side(text) for text in settings.shape.split(",")], "--shape")
    path = settings.network if "." in settings.network else f"ctm.networks.{settings.network}"
    if not path.startswith("ctm.networks."):
        network_class({"class_path": path}, "the command")  # says where a name that is not allowed was given
    conditioner = Labels(settings.num_classes) | Arrays(settings.arrays or {})
    network = built_for(NetworkDescription(path, dict(settings.init_args or {})), shape, conditioner)
    count = sum(parameter.numel() for parameter in network.parameters())
    console = text_console()
    console.print(f"{path} for samples of shape {list(shape)}: {count:,} parameters")
    findings = check_network(network, shape, conditioner)
    for found in findings:
        console.print(f"{'passed' if found.passed else 'FAILED'}  {found.name}: {found.words}")
    if not hasattr(network, "encode"):
        console.print("note    it has no encode(x, t, condition): TeacherEncoder cannot take its features")
    failed = [found.name for found in findings if not found.passed]
    if failed:
        raise ValueError(f"{path} failed {len(failed)} of {len(findings)} checks: {', '.join(failed)}")


def _side(text: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise ValueError(f"--shape is whole numbers with commas, such as 3,32,32, got {text!r}") from error
