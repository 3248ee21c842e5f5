"""`ctm bench samplers`: quality against the number of evaluations, for every sampler and γ on one model."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from jsonargparse import Namespace

from ctm.bench.cells import NAMES, Cell, cells
from ctm.bench.curves import curves, picture, table
from ctm.bench.results import Results
from ctm.console import text_console
from ctm.data import tell
from ctm.evaluation.conditions import check_fields
from ctm.evaluation.extractors import NAMES as FEATURES
from ctm.evaluation.extractors import checksum_of
from ctm.evaluation.frechet import frechet_numbers
from ctm.evaluation.moments import BlockMoments
from ctm.evaluation.passes import Processes
from ctm.evaluation.peers import object_subject, peer_plans
from ctm.evaluation.plans import Plan, who_of
from ctm.evaluation.protocol import differences
from ctm.evaluation.run import Judge, condition_of, make_judge
from ctm.evaluation.sources import ModelSource, Source
from ctm.files import write_whole
from ctm.foreign.objects import is_object_path
from ctm.models import AnyModel, ConsistencyModel, TrajectoryModel, load_model
from ctm.models.protocol import jumper
from ctm.pictures import as_saved
from ctm.progress import tracked
from ctm.sampling.generation import copy_on
from ctm.terminal.options import add_peer_options, check_steps, numbers
from ctm.terminal.options import jumper as known_jumper
from ctm.terminal.parser import Parser, command_parser

__all__ = ["measure", "measured", "parser", "run"]

_BATCH = 250
_WIDTH = 150  # of the table where the output is no terminal
_ABOUT = "about"  # the entry that says what all others were measured on


def parser() -> Parser:
    """The options of the benchmark."""
    result = command_parser(
        "bench samplers",
        "Fréchet distance against the number of network evaluations, for γ-sampling at several γ and the other samplers, on the "
        "Karras grid. Each number is added to the results file as it is found, and --continue goes on with it; a picture lies "
        "beside it.",
        "ctm bench samplers --model models/digits-ctm --data digits --features classifier --seeds 3",
    )
    add = result.add_argument
    add(
        "--model",
        type=str,
        default="models/fashion-mnist-ctm",
        help="model directory, run directory or hub id of a CTM; or MODULE:OBJECT, an object that jumps (needs --allow)",
    )
    add_peer_options(result)
    add("--data", type=str, default="fashion-mnist", help="as for ctm evaluate")
    add("--features", type=str, default="efficientnet", help=f"feature network: {', '.join(FEATURES)}")
    add("--count", type=int, default=2000, help="samples of each number")
    add("--gammas", type=str, default="0,0.25,0.5,0.75,1", help="γ of γ-sampling")
    add("--steps", type=str, default="1,2,4,8,16,32", help="evaluations; the next lower number that a sampler can make")
    add("--samplers", type=str, default=",".join(NAMES), help="which, by name, with commas")
    add("--seeds", type=int, default=1, help="sets of samples for each number, with seeds 0, 1 …")
    add("--out", type=str, default="runs/bench/samplers.json", help="results file; the picture has its name with .png")
    add("--continue", action="store_true", help="go on with a results file that exists")
    return result


def run(settings: Namespace) -> None:
    """Measure what the results do not hold yet, then print the table and draw the picture."""
    path = Path(settings.out)
    results = Results(path, go_on=settings["continue"])
    model, checksum = _model(settings.model)
    names = [name.strip() for name in settings.samplers.split(",") if name.strip()]
    steps, gammas = numbers(settings.steps, int, "--steps"), numbers(settings.gammas, float, "--gammas")
    check_steps(steps)
    wanted = cells(model, names, steps, gammas)
    if settings.seeds < 1:
        raise ValueError(f"--seeds must be at least 1, got {settings.seeds}")
    peers = _peers(settings, steps, model)
    channels, size, _ = model.shape
    judge = make_judge(
        settings.data,
        size=size,
        channels=channels,
        features=settings.features,
        images=settings.count,
        processes=Processes(),
    )
    tell(check_fields(judge.fields, judge.data, model, "the model", judge.labels), settings.model)
    _start(results, settings.model, checksum, judge)
    model.to(judge.processes.device)
    console = text_console()
    console.width = max(console.width, _WIDTH)
    asked = [(cell.name, partial(_of_cell, model, cell)) for cell in wanted]
    asked += [(_name(plan), partial(_of_peer, plan)) for plan in peers]
    left = [
        (f"{name}/{seed}", make, seed)
        for seed in range(settings.seeds)  # seed by seed: a run cut short has the whole picture from fewer of them
        for name, make in asked
        if f"{name}/{seed}" not in results.entries
    ]
    for name, make, seed in tracked(left, "measuring", unit="rows"):
        results.add(name, make(judge, seed))
    found = curves(entry for name, entry in results.entries.items() if name != _ABOUT)
    about = results.entries[_ABOUT]
    write_whole(path.with_suffix(".png"), picture(about, found))
    console.print(table(about, found))
    console.print(f"results: {path} and {path.with_suffix('.png').name}")


def _model(name: str) -> tuple[TrajectoryModel | ConsistencyModel, str]:
    """The CTM of a directory or hub id, or the object of an import path, and its checksum. Raises ValueError for one that does
    not jump."""
    if is_object_path(name) and not Path(name).exists():
        found = object_subject("model", name, "--model")
        jumper(found.model)
        return cast(TrajectoryModel, found.model), found.checksum  # has what is used of one
    model = known_jumper(load_model(name), f"--model {name}", "the samplers are compared on a CTM")
    return model, checksum_of(model)


def _peers(settings: Namespace, steps: list[int], model: AnyModel) -> list[Plan]:
    """The plans of --peer, each with its own entries. Raises ValueError for pictures of another shape than the model's."""
    found = peer_plans(settings.peer or (), steps=steps, prompts=settings.prompts)
    for plan in found:
        if plan.subject.model.shape != model.shape:
            shapes = f"{plan.subject.model.shape} and the model's {model.shape}"
            raise ValueError(f"the images of {plan.subject.name} are {shapes}: measure them apart")
    return found


def _name(plan: Plan) -> str:
    """Of a peer's entries, which its weights are part of: another peer under the same name has others."""
    return f"{who_of(plan.record)} {plan.record['checksum'][:8]}/{plan.record['evaluations']}"


def _of_peer(plan: Plan, judge: Judge, seed: int) -> dict[str, Any]:
    """The entry of a peer."""
    there = copy_on(plan.subject.model, judge.processes.device)
    condition, _ = condition_of(judge, there, seed)
    seeded = replace(plan, record=plan.record | {"seed": seed})
    source = seeded.source(there, judge.images, condition, judge.processes.device)
    kept = {name: plan.record[name] for name in ("name", "checksum", "evaluations", "grid", "guidance")}
    return measured(judge, source, {"sampler": who_of(plan.record), "gamma": None, "peer": True, **kept}, seed)


def _of_cell(model: AnyModel, cell: Cell, judge: Judge, seed: int) -> dict[str, Any]:
    return measure(judge, model, cell, seed)


def _start(results: Results, name: str, checksum: str, judge: Judge) -> None:
    """Write down what is measured on, or compare it with what is written. Raises ValueError where they differ."""
    about = {
        "model": name,
        "checksum": checksum,
        "halves": judge.reference.halves,
        "protocol": judge.protocol,
    }
    kept = {part: results.entries.get(_ABOUT, about).get(part) for part in about}
    others = differences(kept, about, ignore=("protocol.reference.name", "model"))
    if others:
        raise ValueError(f"{results.path} was measured otherwise ({'; '.join(others)}): name another --out")
    if _ABOUT not in results.entries:
        results.add(_ABOUT, about)


def measure(judge: Judge, model: AnyModel, cell: Cell, seed: int) -> dict[str, Any]:
    """The entry of a cell (`measured`)."""
    condition, _ = condition_of(judge, model, seed)
    source = ModelSource(model, judge.images, cell.levels, cell.method, condition, seed, judge.processes.device)
    return measured(judge, source, cell.record, seed)


def measured(judge: Judge, source: Source, record: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """The record with the Fréchet distance of the samples, as `ctm evaluate` computes it, its error bar by blocks, its limit for
    many samples if there is one, and milliseconds of the sampler for an image."""
    device = judge.processes.device
    moments, seconds = BlockMoments(judge.extractor.features), 0.0
    for first in range(0, judge.images, _BATCH):
        indices = np.arange(first, min(first + _BATCH, judge.images))
        started = time.perf_counter()
        images = source.batch(indices)[0].cpu()
        seconds += time.perf_counter() - started
        seen = as_saved(images).to(device)
        moments.add(judge.extractor(seen)[0].cpu(), torch.from_numpy(indices))
    value, limit = frechet_numbers(moments, judge.reference.gaussian, judge.reference.count)
    return {
        **record,
        "seed": seed,
        "frechet": value.value,
        "error": value.error,
        "limit": None if limit is None else limit.value,
        "ms_per_image": 1000 * seconds / judge.images,
    }
