"""Make a whole model of a teacher and the adapters (LoRA) that were trained on it."""

from __future__ import annotations

from pathlib import Path

from jsonargparse import Namespace

from ctm.files import whole_directory
from ctm.terminal.parser import Parser, command_parser
from ctm.terminal.paths import check_place
from ctm.training.adapter_files import merge_adapter

__all__ = ["parser", "run"]


def parser() -> Parser:
    result = command_parser(
        "merge",
        "Merge the adapters of a run with --lora (its adapter/, a few MB) into the weights of the teacher that they were trained "
        "on, and write a model directory that needs neither.",
        "ctm merge models/digits-teacher runs/fast/adapter models/digits-fast",
    )
    result.add_argument("teacher", type=str, help="model directory, run directory, checkpoint file or hub id")
    result.add_argument(
        "model", type=str, metavar="adapter", help="directory with adapter.json and adapter.safetensors"
    )
    result.add_argument("out", type=str, help="the model directory to make")
    return result


def run(settings: Namespace) -> None:
    """Merge, and print where the model is."""
    out = Path(settings.out)
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ValueError(f"{out} is there already: give a new name, or remove it first")
    check_place(out)
    model = merge_adapter(settings.teacher, settings.model)
    with whole_directory(out) as made:
        model.save_pretrained(made)
    print(f"written: {out}")
