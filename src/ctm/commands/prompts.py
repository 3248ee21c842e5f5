"""Prompts of a command: in the words of the user or in a file, embedded by the model's own text encoder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jsonargparse import Namespace

from ctm.conditions import PRESENT
from ctm.data.captions import unique
from ctm.data.latents import Texts
from ctm.foreign.prompts import checked_prompt, read_prompts
from ctm.models import AnyModel
from ctm.networks.diffusers import TEXT
from ctm.teachers.pipelines import embed, takes_text
from ctm.terminal.parser import Parser

__all__ = ["add_prompt_options", "embedded_captions", "given_prompts", "prompt_fields"]


def add_prompt_options(parser: Parser) -> None:
    """Add --prompt and --prompts."""
    parser.add_argument(
        "--prompt",
        action="append",
        default=None,
        help='a text, repeated over the samples; several: --prompt "a" --prompt "b"',
    )
    parser.add_argument(
        "--prompts", type=str, default=None, help="a file of prompts, one in each line; an empty line: no text"
    )


def given_prompts(settings: Namespace, model: AnyModel) -> list[str]:
    """The prompts that a command was given, in order; none where neither option is there. Raises ValueError for a model without a
    text, both options together, and as `read_prompts`."""
    one, file = settings["prompt"], settings["prompts"]
    if one is None and file is None:
        return []
    option = "--prompt" if one is not None else "--prompts"
    if not takes_text(model):
        raise ValueError(f"{option}: this model takes no text, leave it out")
    if one is not None and file is not None:
        raise ValueError("--prompt and --prompts both give the texts: leave one out")
    if settings.get("condition") is not None:
        raise ValueError(f"{option} and --condition both give the text of the samples: leave one out")
    prompts = read_prompts(Path(file)) if file is not None else [checked_prompt(text, "--prompt") for text in one]
    return prompts


def prompt_fields(model: AnyModel, prompts: Sequence[str]) -> dict[str, np.ndarray]:
    """The field "text" of a condition for prompts (n,), (n, tokens, dim), and where it is there, if one of them is empty."""
    if not prompts:
        return {}
    there = np.array([bool(prompt) for prompt in prompts])
    fields = {TEXT: embed(model, prompts).numpy()}
    return fields if there.all() else {**fields, TEXT + PRESENT: there}


def embedded_captions(model: AnyModel, captions: Sequence[str]) -> Texts:
    """The captions of pictures, each text embedded once by the model's own text encoder; "" is no text."""
    texts, numbers = unique(captions)
    nothing = np.zeros((1, *model.conditioner.fields[TEXT]), dtype=np.float32)
    return Texts(embed(model, texts).numpy() if texts else nothing, numbers)
