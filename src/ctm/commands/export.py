"""Give a model to other programs: a diffusers pipeline, an ONNX graph, a graph of torch.export."""

from __future__ import annotations

import shutil
from pathlib import Path

from jsonargparse import Namespace

from ctm.export import SHIPPED, condition_inputs, export_diffusers, export_onnx, export_torch
from ctm.files import suffix_of
from ctm.models import TrajectoryModel, load_model
from ctm.terminal.parser import Parser, command_parser
from ctm.terminal.paths import check_place

__all__ = ["parser", "run"]

_SUFFIX = {"diffusers": "", "onnx": ".onnx", "torch": ".pt2"}


def parser() -> Parser:
    result = command_parser(
        "export",
        "Write a model for other programs. diffusers: a directory that DiffusionPipeline.from_pretrained loads, with or without "
        "ctm-torch. onnx: one graph jump(x, t, s, condition) and a program that samples from it. torch: the same graph for "
        "torch.export.load. docs/export.md has the calls.",
        "ctm export models/fashion-mnist-ctm fast-pipeline --to diffusers",
    )
    result.add_argument("model", type=str, help="a CTM: a model or run directory, or a hub id")
    result.add_argument("out", type=str, help="a new directory (diffusers), or a new file .onnx or .pt2")
    result.add_argument("--to", choices=list(_SUFFIX), required=True, help="what for")
    return result


def run(settings: Namespace) -> None:
    """Load the model and write it. Raises ValueError for a model that cannot jump, and for a place that is taken or has another
    ending."""
    out, wanted = Path(settings.out), _SUFFIX[settings.to]
    if suffix_of(out) != wanted and (wanted or suffix_of(out) in _SUFFIX.values()):
        raise ValueError(
            f"--to {settings.to} writes {f'a file ending in {wanted}' if wanted else 'a directory'}, got {out}"
        )
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ValueError(f"{out} is there already: give a new name, or remove it first")
    check_place(out)
    model = load_model(settings.model)
    if not isinstance(model, TrajectoryModel):
        raise ValueError(
            f"{settings.model} is a {type(model).__name__}, which has no jumps to any level: export a CTM distilled from it"
        )
    if settings.to != "diffusers" and model.pipeline is not None:
        parts = ", ".join(model.pipeline.components)
        print(f"the graph takes and gives what the network does: {parts} are not in it (--to diffusers has them)")
    if settings.to == "diffusers":
        export_diffusers(model, out)
        print(f"written: {out}; in Python: DiffusionPipeline.from_pretrained({str(out)!r}, trust_remote_code=True)")
    elif settings.to == "torch":
        export_torch(model, out)
        print(f"written: {out}; in Python: torch.export.load({str(out)!r}).module()(x, t, s{_inputs(model)})")
    else:
        names = export_onnx(model, out)
        runner = out.with_name("run_onnx.py")
        if not runner.exists():
            shutil.copy(SHIPPED / "run_onnx.py", runner)
        print(f"written: {out}, with the inputs {', '.join(names)}; samples: python {runner} {out} samples.npy 4")


def _inputs(model: TrajectoryModel) -> str:
    return "".join(f", {name}" for name in condition_inputs(model.conditioner, 1))
