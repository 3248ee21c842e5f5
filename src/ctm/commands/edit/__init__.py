"""Edit given pictures: fill, enlarge, colour, redraw, denoise, interpolate, vary. One file for each kind of edit; pictures in,
pictures out."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from jsonargparse import Namespace
from PIL import Image

from ctm import __version__
from ctm.commands.edit import changes, linear
from ctm.commands.edit.common import Edited, expected
from ctm.commands.edit.output import check_target, write_edit
from ctm.commands.fields import given_fields, named_fields
from ctm.commands.marked import composed_claim, name_of, time_of_making
from ctm.commands.screened import Gate, gate
from ctm.evaluation.extractors import checksum_of
from ctm.foreign.text import JSONObject
from ctm.lock import place_locked
from ctm.models import AnyModel, load_model
from ctm.pictures import check_numbers
from ctm.teachers.pipelines import check_pictures
from ctm.terminal.options import check_steps, parse_labels, usable_device
from ctm.terminal.parser import Parser, command_parser

__all__ = ["arrange", "parser", "run"]


@dataclass(frozen=True)
class _Task:
    """One kind of edit. parser: its options; edit: (model, settings) -> pictures; aliases: its other names."""

    parser: Callable[[], Parser]
    edit: Callable[[AnyModel, Namespace], Edited]
    aliases: tuple[str, ...] = ()


_TASKS = {
    "inpaint": _Task(linear.inpaint_parser, linear.inpaint),
    "superresolve": _Task(linear.superresolve_parser, linear.superresolve, ("superres",)),
    "colourise": _Task(linear.colourise_parser, linear.colourise, ("colorize", "colorise", "colourize")),
    "stroke": _Task(changes.stroked_parser, changes.stroked),
    "denoise": _Task(changes.denoised_parser, changes.denoised),
    "interpolate": _Task(changes.interpolated_parser, changes.interpolated),
    "vary": _Task(changes.varied_parser, changes.varied, ("variations",)),
}
_NAMES = {alias: name for name, task in _TASKS.items() for alias in (name, *task.aliases)}


def parser() -> Parser:
    return command_parser(
        "edit",
        "Edit pictures with a model. Pictures of any size and mode are converted, resized and cropped to the model's.",
        "ctm edit inpaint models/fashion-mnist-ctm shirt.png --mask mask.png --out filled.png",
    )


def add_subcommands(own: Parser) -> None:
    """Add one subcommand for each kind of edit. It is called after the command itself has its place."""
    kinds = own.add_subcommands(required=True, dest="task")
    for name, task in _TASKS.items():
        kind = task.parser()
        kinds.add_subcommand(name, kind, help=kind.description)


def arrange(arguments: list[str]) -> list[str]:
    """The arguments in the order `ctm edit inpaint MODEL …`. `ctm edit MODEL inpaint …` and other names of the edits are
    accepted."""
    at = arguments.index("edit") + 1
    words = arguments[at : at + 2]
    if words and words[0] not in _NAMES and len(words) == 2 and words[1] in _NAMES:
        words.reverse()
    return [*arguments[:at], *(_NAMES.get(word, word) for word in words[:1]), *words[1:], *arguments[at + 2 :]]


def run(settings: Namespace) -> None:
    """Read the pictures, edit them and write the results. Nothing is written if any part fails."""
    task, own = settings.task, settings[settings.task]
    own.task = task
    rounds = own.get("rounds") or 1
    check_steps([own.steps * rounds] if "steps" in own else (), "--steps" if rounds == 1 else "--steps times --rounds")
    model = load_model(own.model)
    check_pictures(model, own.model, "ctm edit")
    own.fields = given_fields(own, model)
    if len(model.shape) != 3 or model.shape[0] not in (1, 3) or model.shape[1] != model.shape[2]:
        raise ValueError(
            f"{own.model} is a model of shape {model.shape}: edits need square pictures of 1 or 3 channels"
        )
    names = ("image", "first", "second", "mask")
    inputs = {name: own[name] for name in names if own.get(name) is not None}
    out = Path(own.out)
    check_target(out, model.shape, expected(model, own), list(inputs.values()))
    with gate(own, f"ctm edit {task}") as policy, place_locked(out):
        sources = {}
        if policy is not None:
            sources = _admitted(policy, model, own, {name: file for name, file in inputs.items() if name != "mask"})
        edited = _TASKS[task].edit(model.to(usable_device(own.device)), own)
        check_numbers(edited.results)
        about = {"task": task, "model": str(own.model), **inputs, "num": len(edited.results), "seed": own.seed}
        about |= edited.facts | named_fields(own, own.fields) | {"version": __version__}
        made, whole = len(edited.results), None
        if policy is not None:
            edited, whole = _screened(policy, model, edited, own, sources)
        count = len(edited.results)
        if count:
            write_edit(out, edited, about, whole)
    if policy is None:
        print(f"{count} result{'s' if count > 1 else ''} in {out}")
    else:
        print("".join(f"{line}\n" for line in policy.lines()), end="")
        print(f"{count} of {made} results in {out}" if count else f"none of {made} results is written")


def _admitted(policy: Gate, model: AnyModel, settings: Namespace, files: dict[str, str]) -> dict[str, bytes]:
    """The contents of the picture files that are edited, by what they are in the edit, if the policy allows the edit and its
    filters pass the pictures. Raises ValueError otherwise."""
    labels = [] if settings.labels is None else parse_labels(settings.labels, model.num_classes, model.class_names)
    policy.admit(model, str(settings.model), expected(model, settings), labels, settings.fields, upload=True)
    for file in files.values():
        policy.check_upload(file)
    return {name: Path(file).read_bytes() for name, file in files.items()}


def _screened(
    policy: Gate, model: AnyModel, edited: Edited, settings: Namespace, sources: dict[str, bytes]
) -> tuple[Edited, Callable[[Image.Image], bytes]]:
    """The results that the policy passes, with their numbers and signed files, and what makes the file of a strip of them."""
    digest = checksum_of(model)
    common: JSONObject = {"kind": settings.task, "model": name_of(str(settings.model)), "digest": digest}
    common |= {"model_digest": digest, "nonce": None, "seed": settings.seed, "version": __version__}
    common |= {"source": [hashlib.sha256(content).hexdigest() for content in sources.values()]}
    common |= {"fields": named["condition"]} if (named := named_fields(settings, settings.fields)) else {}

    def tell(number: int) -> JSONObject:
        return {**common, "index": number, **edited.makings[number], "created": time_of_making()}

    numbers = range(len(edited.results))
    files = policy.judge(edited.results.detach().cpu(), numbers, tell, sources)
    left = [number for number in numbers if files[number] is not None]
    captions, kept = [edited.captions[number] for number in left], [file for file in files if file is not None]
    claim = composed_claim(tell(left[0] if left else 0), "strip", left, settings.seed)
    whole = partial(policy.composed, claim=claim, sources=sources)
    return replace(edited, results=edited.results[left], captions=captions, numbers=left, files=kept), whole
