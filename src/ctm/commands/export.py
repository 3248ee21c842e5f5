"""Give a model to other programs: a diffusers pipeline, an ONNX graph, a graph of torch.export; or to the hub."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

from jsonargparse import Namespace

from ctm.export import SHIPPED, condition_inputs, export_diffusers, export_onnx, export_torch, write_hub_folder
from ctm.files import suffix_of
from ctm.hub import push_folder
from ctm.models import TrajectoryModel, load_model
from ctm.terminal.parser import Parser, command_parser
from ctm.terminal.paths import check_place
from ctm.version import __version__

__all__ = ["parser", "run"]

_SUFFIX = {"diffusers": "", "onnx": ".onnx", "torch": ".pt2"}


def parser() -> Parser:
    result = command_parser(
        "export",
        "Write a model for other programs. diffusers: a directory that DiffusionPipeline.from_pretrained loads, with or without "
        "ctm-torch. onnx: one graph jump(x, t, s, condition) and a program that samples from it. torch: the same graph for "
        "torch.export.load. hub: a repository OWNER/NAME with the model, its recipe and a card. docs/export.md has the calls.",
        "ctm export models/fashion-mnist-ctm fast-pipeline --to diffusers",
    )
    result.add_argument(
        "model", type=str, help="a CTM: a model or run directory, or a hub id; for the hub a directory of any kind"
    )
    result.add_argument(
        "out", type=str, help="a new directory (diffusers), a new file .onnx or .pt2, or OWNER/NAME (hub)"
    )
    result.add_argument("--to", choices=[*_SUFFIX, "hub"], required=True, help="what for")
    words = "for the hub: folder of a ctm evaluate, whose numbers, protocol and pictures the card shows"
    result.add_argument("--evaluation", type=str, default=None, help=words)
    result.add_argument("--private", action="store_true", help="for the hub: a new repository is private")
    result.add_argument("--branch", type=str, default=None, help="for the hub: the branch to write (default: main)")
    return result


def run(settings: Namespace) -> None:
    """Load the model and write it. Raises ValueError for a model that cannot jump, and for a place that is taken or has another
    ending."""
    if settings.to == "hub":
        _push(settings)
        return
    if settings.evaluation is not None or settings.private or settings.branch is not None:
        raise ValueError(f"--evaluation, --private and --branch are for --to hub, not for --to {settings.to}")
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
    if model.scaling is not None:
        if settings.to == "diffusers":
            raise ValueError(
                f"{settings.model} makes arrays of numbers, and a pipeline of diffusers makes pictures: give --to onnx or torch"
            )
        rule = json.dumps(model.scaling.as_json())
        print(f"the graph's samples x are as the model learns them; the data's numbers are x*scale + offset: {rule}")
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


def _push(settings: Namespace) -> None:
    """Send a model directory, or a run's model, to the hub. Raises ValueError for a hub id as the source: it is there already."""
    source = Path(settings.model)
    if not source.is_dir():
        raise ValueError(f"--to hub sends a model or run directory, and {settings.model} is none")
    model = load_model(settings.model)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "model"
        evaluation = None if settings.evaluation is None else Path(settings.evaluation)
        for line in write_hub_folder(source, model, folder, evaluation):
            print(line)
        files = ", ".join(sorted(file.name for file in folder.iterdir()))
        message = f"A {type(model).__name__} of ctm-torch {__version__}"
        options = {"private": settings.private or None, "branch": settings.branch}
        address = push_folder(folder, settings.out, message=message, **options)
    print(f"sent: {files}; {address}")
    print(f"in Python: ctm.load_model({settings.out!r})")


def _inputs(model: TrajectoryModel) -> str:
    return "".join(f", {name}" for name in condition_inputs(model.conditioner, 1))
