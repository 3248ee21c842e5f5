"""`ctm train --help`: the settings used most, in words. `--help all`: every setting. `--help CLASS`: the settings of one
class."""

from __future__ import annotations

import argparse
import inspect
import re
from difflib import get_close_matches
from typing import Any

from ctm.terminal.known_classes import ROOMS, classes_of
from ctm.terminal.parser import Parser

__all__ = ["EXAMPLE", "TrainHelp"]

EXAMPLE = "ctm train --config pictures-small-teacher --data.name path/to/folder --out runs/teacher"
_PACKAGES = ("ctm", "torch", "schedulefree")
_FILLED_IN = {"params", "shape", "num_classes"}  # a run gives these to optimisers and networks itself
_SHORT = f"""\
usage: ctm train --config RECIPE [--data.name DATA] [--out DIR] [--SETTING VALUE ...]

Train by a recipe: a diffusion teacher, or a CTM that learns from one. The same command
goes on where a run stopped. Each setting of a recipe can be given here too.

  --config RECIPE          file of a recipe, or the name of one that ships (ctm recipes)
  --out DIR                where the run is kept (default: runs/NAME of the recipe)
  --dry-run                take one step, say what the run would cost, write nothing
  --print_config           print all settings as they would be used, and stop

data
  --data.name DATA         a folder with a sub-folder of pictures for each class, a flat
                           folder, .npz, .parquet, a hub id, digits, fashion-mnist, ...
  --data.size N            side of the pictures: they are resized and cropped to squares
  --data.channels N        1 turns them to grey, 3 to colour
  --data.batch_size N      pictures in a step
  --data.flip true         show the network half of the pictures mirrored

models
  --teacher MODEL          the run or model directory that a CTM learns from
  --student MODEL          start from this model's weights instead
  --network.init_args.NAME VALUE
                           a setting of the network, as --network.init_args.channels 32

training
  --steps N                steps of the whole run
  --optimizer.init_args.lr X
                           learning rate
  --objectives.0.NAME VALUE
                           a setting of a loss, by its number in the list or its class,
                           as --objectives.Matching.grid_points 10
  --ema X                  decay of the averaged weights that are published
  --seed N                 of all random numbers
  --sample_minutes X       minutes from one grid of samples to the next
  --sample_every N         steps from one grid of samples to the next, besides
  --checkpoint_every N     steps from one checkpoint to the next
  --engine.precision bf16  compute in bfloat16, on GPUs that are fast in it

more help
  --help all               every setting, with its type and default
  --help CLASS             the settings of one class, as --help Matching,
                           --help ctm.networks.DDPMpp, --help torch.optim.AdamW
  docs/training.md         what the settings mean for a run

Example: {EXAMPLE}
"""


class TrainHelp(argparse.Action):
    """The option --help [all | CLASS]: prints and exits. Raises ValueError for an unknown class."""

    def __init__(self, option_strings: list[str], dest: str = argparse.SUPPRESS, **options: Any) -> None:
        super().__init__(
            option_strings, argparse.SUPPRESS, nargs="?", default=argparse.SUPPRESS, metavar="all | CLASS", **options
        )

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        if values is None:
            print(_SHORT, end="")
        elif values == "all":
            print(_full(parser), end="")
        else:
            print(_class_help(_class(values)), end="")
        parser.exit()


def _full(parser: Parser) -> str:
    """The help of every setting. Where jsonargparse lists the subclasses that happen to be imported, our classes are listed
    at the end."""
    rooms = [f"  {room}: {', '.join(sorted(classes_of(room)))}" for room in ROOMS]
    return "\n".join(
        [_without_classes(parser), "classes (ctm train --help CLASS shows the settings of one):", *rooms, ""]
    )


def _class(name: str) -> type:
    """The class of that name, alone or with its module. Only modules of ctm, torch and schedulefree are imported."""
    room, _, last = name.rpartition(".")
    rooms = [room] if room else list(ROOMS)
    if rooms[0].split(".")[0] not in _PACKAGES:
        raise ValueError(f"--help {name}: classes of {', '.join(_PACKAGES)} can be shown, such as ctm.networks.DDPMpp")
    try:
        known = {key: value for each in rooms for key, value in classes_of(each).items()}
    except ImportError as error:
        raise ValueError(f"--help {name}: there is no module {room} here ({error})") from error
    if last not in known:
        near = get_close_matches(last, known, 3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}" if near else f"{', '.join(sorted(known)) or 'no class'} is there"
        raise ValueError(f"--help {name}: there is no such class: {hint}")
    return known[last]


def _class_help(shown: type) -> str:
    """The description of a class, and its settings with type and default."""
    path = f"{shown.__module__}.{shown.__qualname__}"
    documentation = (inspect.getdoc(shown) or "").partition("\nArgs:")[0].strip()
    if not path.startswith("ctm."):
        documentation = documentation.partition("\n\n")[0]
    inner = Parser(prog="", usage=argparse.SUPPRESS, add_help=False)
    inner.add_class_arguments(shown, None, skip=_FILLED_IN & set(inspect.signature(shown).parameters), as_group=False)
    settings = _without_classes(inner).partition("options:\n")[2].rstrip()
    body = re.sub(r"^( *)--", r"\1", settings, flags=re.MULTILINE)
    return f"{path}\n\n{documentation}\n\nsettings (init_args):\n{body or '  none'}\n"


def _without_classes(parser: Parser) -> str:
    """jsonargparse's help without its lists of subclasses that happen to be imported, without the options that show one of
    them, and without addresses of functions."""
    for action in parser._actions:
        if (
            action.dest.endswith(".help") or action.metavar == "CONFIG"
        ):  # a group of settings, which no file is read for
            action.help = argparse.SUPPRESS
    text = re.sub(r",?\s+known\s+subclasses:[^)]*\)", ")", parser.format_help())
    return re.sub(r"<function (\w+) at\s+0x[0-9a-f]+>", r"\1", text)
