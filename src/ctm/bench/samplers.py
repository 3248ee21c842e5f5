"""`ctm bench samplers`: quality against the number of evaluations, for every sampler and γ on one model."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

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
from ctm.evaluation.protocol import differences
from ctm.evaluation.run import Judge, condition_of, make_judge
from ctm.evaluation.sources import ModelSource
from ctm.files import write_whole
from ctm.models import AnyModel, load_model
from ctm.pictures import as_saved
from ctm.progress import tracked
from ctm.terminal.options import check_steps, jumper, numbers
from ctm.terminal.parser import Parser, command_parser

__all__ = ["measure", "parser", "run"]

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
        help="model directory, run directory or hub id of a CTM",
    )
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
    instead = "the samplers are compared on a CTM"
    model = jumper(load_model(settings.model), f"--model {settings.model}", instead)
    names = [name.strip() for name in settings.samplers.split(",") if name.strip()]
    steps, gammas = numbers(settings.steps, int, "--steps"), numbers(settings.gammas, float, "--gammas")
    check_steps(steps)
    wanted = cells(model, names, steps, gammas)
    if settings.seeds < 1:
        raise ValueError(f"--seeds must be at least 1, got {settings.seeds}")
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
    _start(results, settings.model, model, judge)
    model.to(judge.processes.device)
    console = text_console()
    console.width = max(console.width, _WIDTH)
    left = [
        (f"{cell.name}/{seed}", cell, seed)
        for seed in range(settings.seeds)  # seed by seed: a run cut short has the whole picture from fewer of them
        for cell in wanted
        if f"{cell.name}/{seed}" not in results.entries
    ]
    for name, cell, seed in tracked(left, "measuring", unit="rows"):
        results.add(name, measure(judge, model, cell, seed))
    found = curves(entry for name, entry in results.entries.items() if name != _ABOUT)
    about = results.entries[_ABOUT]
    write_whole(path.with_suffix(".png"), picture(about, found))
    console.print(table(about, found))
    console.print(f"results: {path} and {path.with_suffix('.png').name}")


def _start(results: Results, name: str, model: AnyModel, judge: Judge) -> None:
    """Write down what is measured on, or compare it with what is written. Raises ValueError where they differ."""
    about = {
        "model": name,
        "checksum": checksum_of(model),
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
    """The Fréchet distance of a cell's samples, as `ctm evaluate` computes it, its error bar by blocks, its limit for many
    samples if there is one, and milliseconds of the sampler for an image."""
    condition, _ = condition_of(judge, model, seed)
    device = judge.processes.device
    source = ModelSource(model, judge.images, cell.levels, cell.method, condition, seed, device)
    moments, seconds = BlockMoments(judge.extractor.features), 0.0
    for first in range(0, judge.images, _BATCH):
        indices = np.arange(first, min(first + _BATCH, judge.images))
        started = time.perf_counter()
        images = source.batch(indices)[0].cpu()
        seconds += time.perf_counter() - started
        seen = as_saved(images).to(device)
        moments.add(judge.extractor(seen)[0].cpu(), torch.from_numpy(indices))
    value, limit = frechet_numbers(moments, judge.reference.gaussian, judge.reference.count)
    return cell.record | {
        "seed": seed,
        "frechet": value.value,
        "error": value.error,
        "limit": None if limit is None else limit.value,
        "ms_per_image": 1000 * seconds / judge.images,
    }
