"""Choose the noise levels of few jumps for a model, and keep them in its config.json."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from huggingface_hub import hf_hub_download
from jsonargparse import Namespace
from rich.box import SIMPLE
from rich.table import Table

from ctm import sampling
from ctm.console import text_console
from ctm.data import load_images, tell
from ctm.data.conditions import fields_for
from ctm.evaluation.conditions import FieldsFrom, FileFields, fields_from
from ctm.evaluation.extractors import NAMES
from ctm.evaluation.frechet_measure import FrechetMeasure
from ctm.evaluation.number import Number
from ctm.files import whole_directory, write_whole
from ctm.lock import run_locked
from ctm.models import AnyModel, load_model
from ctm.models.base import CONFIG, WEIGHTS
from ctm.models.grids import TunedGrid, grids_as_json
from ctm.models.pipeline import pipeline_from
from ctm.models.reading import read_config
from ctm.progress import JobBar
from ctm.sampling import FlowDistance, GridMeasure
from ctm.teachers import load_teacher
from ctm.terminal.options import add_data_options, add_device_option, check_steps, data_options, numbers, usable_device
from ctm.terminal.parser import Parser, command_parser
from ctm.terminal.paths import check_place

__all__ = ["parser", "run"]

_GAMMAS = [0.0, 0.25, 0.5, 0.75, 1.0]


def parser() -> Parser:
    result = command_parser(
        "tune",
        "Choose the noise levels (and γ) of so many jumps by measuring a model's samples. A grid that is better by more than two "
        "standard errors, on noise and images that tuning has not seen, is kept in the model's config.json; ctm sample, "
        "ctm evaluate and ctm.generate then use it for that number of steps, unless told otherwise.",
        "ctm tune runs/mine --steps 2,4 --teacher runs/teacher",
    )
    add = result.add_argument
    add("model", type=str, help="model directory, run directory or hub id")
    add("--steps", type=str, default="2,4", help="numbers of jumps, each tuned apart")
    add("--measure", type=str, default="flow", help="flow: squared distance to the flow; frechet: to the data")
    add("--teacher", type=str, default=None, help="flow: whose denoiser gives the flow (default: the model's own)")
    add("--data", type=str, default=None, help="frechet: images as for evaluate; one half tunes, the other judges")
    add_data_options(result)
    add("--features", type=str, default="efficientnet", help=f"frechet: feature network, {', '.join(NAMES)}")
    add(
        "--condition",
        type=str,
        default=None,
        help="fields of the samples' conditions: none, or an .npz whose rows are taken in turn; frechet: also data, those of its "
        "rows (default: none; frechet: data)",
    )
    add(
        "--gamma",
        type=str,
        default="0",
        help="frechet: γ to be tried, such as 0,0.5,1, or tune for five; first: baseline",
    )
    add(
        "--num", type=int, default=None, help="samples that tune (default: 256, frechet 1000); four times as many judge"
    )
    add("--seed", type=int, default=0, help="of the noise, the classes and the halves")
    add_device_option(result)
    add("--out", type=str, default=None, help="a new directory for the model with its grids (default: where it is)")
    return result


def run(settings: Namespace) -> None:
    """Tune a grid for each number of steps, print the table, and write the grids that are better."""
    steps = numbers(settings.steps, int, "--steps")
    check_steps(steps)
    gammas = _GAMMAS if settings.gamma == "tune" else numbers(settings.gamma, float, "--gamma")
    _check(settings, gammas)
    model = load_model(settings.model)
    source = _directory(settings.model)
    out = _target(settings.out, source)
    check_place(out / CONFIG)
    model.to(usable_device(settings.device))
    measure, found = _measure(model, settings), []
    for count in dict.fromkeys(steps):
        with JobBar(f"{count} steps", None, unit="grids") as bar:
            found.append(sampling.tune_grid(model, count, measure=measure, gammas=gammas, progress=_shown(bar)))
    _print(found)
    kept = {grid.steps: grid for grid in found if grid.better}
    if not kept:
        print("no grid is better than the plain one by more than two standard errors: nothing was written")
        return
    _write(out, source, model.grids | kept)
    print(
        f"{out / CONFIG} keeps the {_listed(kept)}; --grid karras gives the plain one"
        + ("" if len(kept) == len(found) else ". What is not better by two standard errors was not kept")
    )


def _listed(kept: dict[int, TunedGrid]) -> str:
    return f"grid{'s' if len(kept) > 1 else ''} for {' and '.join(map(str, sorted(kept)))} steps"


def _check(settings: Namespace, gammas: list[float]) -> None:
    """Raises ValueError for settings that contradict each other."""
    if settings.measure not in ("flow", "frechet"):
        raise ValueError(f"--measure must be flow or frechet, got {settings.measure!r}")
    if settings.seed < 0:
        raise ValueError(f"--seed must be at least 0, got {settings.seed}")
    if settings.measure == "flow" and settings.data is not None:
        raise ValueError("--data belongs to --measure frechet: the distance to the flow needs no images")
    if settings.measure == "flow" and (settings.condition == "data" or settings.data_condition is not None):
        raise ValueError(
            "the distance to the flow needs no images, so there are no fields of data: give --condition FILE.npz"
        )
    if settings.measure == "flow" and gammas != [0.0]:
        raise ValueError("--gamma belongs to --measure frechet: samples with added noise are not on the flow")
    if settings.measure == "frechet" and settings.data is None:
        raise ValueError("--measure frechet needs --data: the images that samples are compared with")
    if settings.measure == "frechet" and settings.teacher is not None:
        raise ValueError("--teacher belongs to --measure flow: the Fréchet distance is to the data")


def _measure(model: AnyModel, settings: Namespace) -> GridMeasure:
    fields = fields_from(settings.condition, model.conditioner.given_fields)
    if settings.measure == "flow":
        num = 256 if settings.num is None else settings.num
        teacher = None if settings.teacher is None else load_teacher(settings.teacher)
        if teacher is not None:
            teacher.to(next(model.parameters()).device)
        given = _of_file(model, teacher, fields)
        return FlowDistance(model, teacher, num=num, held_out=4 * num, seed=settings.seed, fields=given)
    if len(model.shape) != 3 or model.shape[0] not in (1, 3) or model.shape[1] != model.shape[2]:
        raise ValueError(f"--measure frechet looks at square pictures of 1 or 3 channels, and these are {model.shape}")
    return FrechetMeasure(
        model,
        load_images(settings.data, model.shape[1], model.shape[0], **data_options(settings, [model])),
        features=settings.features,
        num=1000 if settings.num is None else settings.num,
        seed=settings.seed,
        device=next(model.parameters()).device,
        fields=fields,
    )


def _of_file(model: AnyModel, teacher: AnyModel | None, fields: FieldsFrom) -> dict[str, torch.Tensor]:
    """The fields of a file, (N, …) each, for the distance to the flow. Lines say what a model or its teacher goes without."""
    takes = model.conditioner.given_fields
    if not isinstance(fields, FileFields):
        names = ", ".join(takes) if fields == "data" else ""
        tell([f"the model is conditioned on {names}: tuned without (--condition FILE.npz gives it)"] if names else [])
        return {}
    if teacher is not None:
        tell(fields_for(teacher.conditioner, fields.values, data=fields.name, who="the teacher")[1], fields.name)
    return {name: torch.from_numpy(values) for name, values in fields.values.items()}


def _directory(model: str) -> Path:
    """The directory of the model's files; for a hub repository, its place in the hub's cache."""
    local = Path(model)
    if local.is_dir():
        return local if (local / CONFIG).is_file() else local / "model"
    return Path(hf_hub_download(model, CONFIG, local_files_only=True)).parent


def _target(out: str | None, source: Path) -> Path:
    """The directory to write. Raises ValueError where it holds other things."""
    if out is None:
        if "snapshots" in source.parts:
            raise ValueError("a model from the hub is not written to where it is: give --out, a new directory")
        return source
    target = Path(out)
    if target.resolve() != source.resolve() and target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"--out {out} is there already: give a new directory")
    return target


def _write(out: Path, source: Path, grids: dict[int, TunedGrid]) -> None:
    """Write the grids into config.json and leave its other entries unchanged. A new directory gets the weights too."""
    if out.resolve() == source.resolve():
        with run_locked(out.parent):
            write_whole(out / CONFIG, _config(source, grids))
        return
    with whole_directory(out) as made:
        shutil.copyfile(source / WEIGHTS, made / WEIGHTS)
        pipeline = pipeline_from(read_config(source / CONFIG).get("pipeline"), str(source))
        if pipeline is not None:
            pipeline.copy_to(made)
        write_whole(made / CONFIG, _config(source, grids))


def _config(source: Path, grids: dict[int, TunedGrid]) -> bytes:
    config = json.loads((source / CONFIG).read_text(encoding="utf-8")) | {"grids": grids_as_json(grids)}
    return (json.dumps(config, indent=2) + "\n").encode()


def _shown(bar: JobBar) -> Callable[[int, float], object]:
    def update(count: int, best: float) -> None:
        bar.reach(count, f"the best {best:.4g}")

    return update


def _print(found: list[TunedGrid]) -> None:
    """Print the table of the measure before and after."""
    table = Table(box=SIMPLE, padding=(0, 1, 0, 0))
    for column in ("steps", "Karras", "tuned", "gain", "γ", "levels"):
        table.add_column(column, no_wrap=True)
    for grid in found:
        error = "" if grid.gain_error is None else f" ± {100 * grid.gain_error:.1f}"
        numbers_ = [str(Number(grid.before, grid.before_error)), str(Number(grid.after, grid.after_error))]
        levels = ", ".join(f"{level:g}" for level in grid.levels)
        table.add_row(str(grid.steps), *numbers_, f"{100 * grid.gain:.1f}{error} %", f"{grid.gamma:g}", levels)
    console = text_console(wide=True)
    console.print(f"{found[0].measure}, on noise that tuning has not seen; ±: one standard error")
    console.print(table)
