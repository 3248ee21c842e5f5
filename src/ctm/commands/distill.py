"""Make a teacher fast: a student that does in one to four steps what the teacher does in dozens, by one command."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from jsonargparse import Namespace

from ctm.commands.latent_data import LATENTS, LatentData, needs_latents
from ctm.commands.teacher_samples import SAMPLES, check_samples, cycled_labels, images_of, make_samples
from ctm.console import text_console
from ctm.data import Images, load_images
from ctm.distill.choices import WAYS, Chosen, choose, unlabelled, wishes_from
from ctm.distill.measures import NOISES, TeacherWalks, noises_within, teacher_walks
from ctm.distill.recipe_text import recipe_text
from ctm.distill.record import RECIPE, Record, check_out
from ctm.distill.report import feature_network, plain_report, report, samples_for
from ctm.files import write_whole
from ctm.lock import place_locked
from ctm.models import AnyModel, ConsistencyModel
from ctm.models.protocol import taken_by
from ctm.teachers import load_teacher
from ctm.terminal.options import add_data_options, data_options, numbers
from ctm.terminal.parser import Parser, command_parser
from ctm.terminal.paths import check_place
from ctm.terminal.recipe_parser import parse_recipe
from ctm.training import dry_run, train
from ctm.training.dry_run import DryRun
from ctm.training.guard import TrainingDiverged
from ctm.training.levels import measured_deviation
from ctm.training.origin import model_digest
from ctm.training.run_directory import RunDirectory

__all__ = ["parser", "run"]

_MINUTES = 10.0
_TRAINS, _JUDGES, _SAMPLES = 0.75, 0.15, 0.15  # shares of the time that is left
_ASKED = ("data", "split", "features", "num", "samples", "caption", "prompts")


def parser() -> Parser:
    result = command_parser(
        "distill",
        "Read a teacher, choose how to distil it, train a student, measure both and write report.html. Each choice is printed "
        "with its reason and can be given instead. The recipe that is run stands in OUT/recipe.yaml; ctm train runs it to the "
        "same bits. The same command goes on after an interruption.",
        "ctm distill models/digits-teacher --data digits --out runs/fast --minutes 10",
    )
    add = result.add_argument
    add("teacher", type=str, help="model directory, run directory, checkpoint file or hub id")
    add("--data", type=str, default=None, help="as for train (default: samples of the teacher, made once and kept)")
    add_data_options(result)
    add("--split", type=str, default=None, help="train or test, where the data have both (default: train)")
    _add_text_options(result)
    add("--out", type=str, default=None, help="run directory (default: runs/NAME-fast)")
    add("--minutes", type=float, default=None, help=f"for everything, measuring too (default: {_MINUTES:g})")
    add("--steps", type=int, default=None, help="steps of the training, instead of --minutes")
    add("--dry-run", action="store_true", help="choose and measure, print choices, recipe and cost; write nothing")
    add(
        "--network",
        type=yaml.safe_load,
        default=None,
        help="'{class_path: …, init_args: {…}}' instead of the teacher's",
    )
    add("--lora", type=int, default=None, metavar="RANK", help="train adapters of this rank on the teacher's weights")
    add("--checkpoint_gradients", action="store_true", help="compute activations again in the backward pass")
    add("--way", type=str, default=None, help=f"how to teach: {', '.join(WAYS)} (default: matching)")
    add("--sigma_min", type=float, default=None, help="lowest noise level (default: the teacher's)")
    add("--sigma_max", type=float, default=None, help="highest noise level (default: the teacher's)")
    add("--grid_points", type=int, default=None, help="levels of the matching grid (default: as the flow needs)")
    add(
        "--solver_steps",
        type=int,
        default=None,
        help="most solver steps of the teacher (default: the grid's, at most 9)",
    )
    add("--batch_size", type=int, default=None, help="images in a step (default: as the time allows)")
    add("--learning_rate", type=float, default=None, help="of RAdam (default: by the number of steps and the size)")
    add("--ema", type=float, default=None, help="decay of the published weights (default: by the number of steps)")
    add("--target_ema", type=float, default=None, help="decay of the target (default: by the number of steps)")
    add("--guidance", type=str, default=None, help="LOW,HIGH: distil classifier-free guidance at these scales")
    add("--precision", type=str, default=None, help="fp32, bf16 or fp16 (default: fp32)")
    add(
        "--samples",
        type=int,
        default=None,
        help="without --data, how many of the teacher's (default: as the time allows)",
    )
    add(
        "--features",
        type=str,
        default=None,
        help="feature network of the table (default: as the data and the machine have)",
    )
    add("--num", type=int, default=None, help="samples of each row of the table (default: as the time allows)")
    add("--seed", type=int, default=0, help="of every random number")
    return result


def _add_text_options(result: Parser) -> None:
    """Add what is asked of a teacher that takes a text."""
    words = "array or column of captions (default: text), or 'a {}' with the class"
    result.add_argument("--caption", type=str, default=None, help=words)
    words = "without --data: a file of prompts for a teacher that takes a text"
    result.add_argument("--prompts", type=str, default=None, help=words)


def run(settings: Namespace) -> None:
    """Choose, train, measure, report; or go on with what the same command began."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError(
            "ctm distill runs in one process: let it write its recipe by --dry-run or a short run, then train that in several: "
            "torchrun … -m ctm train --config OUT/recipe.yaml"
        )
    started = time.monotonic()
    name = str(settings.teacher)
    out = Path(settings.out or f"runs/{Path(name).stem}-fast")
    check_place(out / RECIPE)
    if not settings["dry_run"]:
        check_out(out)
    measured = _Deviation()
    teacher = load_teacher(name, sigma_data=measured)
    if isinstance(teacher, ConsistencyModel):
        raise ValueError(f"{name} is a consistency model, whose output is no denoiser: it has no flow to be distilled")
    job = _Job(settings, teacher, name, out, started, measure=measured.asked)
    if settings["dry_run"]:
        job.dry_run()
        return
    with place_locked(out):
        job.run()


class _Deviation:
    """sigma_data of a teacher that does not say its own, for `load_teacher`: that of the data, once they are known."""

    asked = False

    def __call__(self, shape: Sequence[int]) -> tuple[float, str]:
        self.asked = True
        return 0.5, "until that of the data is measured"


class _Job:
    """One call of the command. measure: whether the teacher's sigma_data is that of the data."""

    def __init__(
        self, settings: Namespace, teacher: AnyModel, name: str, out: Path, started: float, *, measure: bool
    ) -> None:
        self.measure = measure
        self.settings, self.teacher, self.name, self.out, self.started = settings, teacher, name, out, started
        self.console = text_console()
        given = dict(vars(settings))
        given["checkpoint_gradients"] = given["checkpoint_gradients"] or None
        if given["guidance"] is not None:
            given["guidance"] = _scales(given["guidance"])
        if given["network"] is not None and not isinstance(given["network"], dict):
            raise ValueError("--network takes '{class_path: package.Class, init_args: {…}}'")
        for option, least in (("steps", 1), ("lora", 1), ("samples", 16), ("num", 16), ("batch_size", 1)):
            if given[option] is not None and given[option] < least:
                raise ValueError(f"--{option} must be at least {least}, got {given[option]}")
        if given["minutes"] is not None and not given["minutes"] > 0:
            raise ValueError(f"--minutes must be above 0, got {given['minutes']}")
        if given["data"] is not None and given["samples"] is not None:
            raise ValueError(
                "--samples is the number of the teacher's own samples, and --data gives other data: leave one out"
            )
        self.wishes = wishes_from(given)
        self.asked = self.wishes.as_json() | {n: given[n] for n in _ASKED if given[n] is not None}
        self.asked |= {n: given[n] for n in given if n.startswith("data_") and given[n] is not None}
        self.about = {"name": name, "digest": model_digest(teacher)}
        self.latent = LatentData(settings, teacher, out) if needs_latents(teacher) else None
        self.check_texts()
        self.minutes = given["minutes"] or _MINUTES

    def check_texts(self) -> None:
        """Raises ValueError where captions or prompts are given for a teacher that takes none."""
        given = [name for name in ("caption", "prompts") if self.settings[name] is not None]
        if given and self.latent is None:
            raise ValueError(f"--{given[0]}: the teacher takes no text, leave it out")

    def left(self) -> float:
        """Seconds left of the minutes."""
        return max(60 * self.minutes - (time.monotonic() - self.started), 1.0)

    def run(self) -> None:
        record = Record.load(self.out)
        if record is not None:
            record.check(self.asked, self.about, self.out)
        if record is None or not record.choices:
            record = self.begin(record or Record(self.asked, self.about))
        else:
            self.say([f"goes on with what {self.out} holds", *(choice.line() for choice in record.choices)])
            if self.latent is not None:
                self.latent.check(record)
            elif record.samples:
                check_samples(self.out, record.samples["digest"])
        recipe, text = parse_recipe(["--config", str(self.out / RECIPE)])
        try:
            directory = train(recipe, self.out, text, title=self.out.name)
        except TrainingDiverged as error:
            raise TrainingDiverged(f"{error}: give --learning_rate and another --out") from error
        self.judge(directory, record)

    def begin(self, record: Record) -> Record:
        """Data, measurements, choices, recipe: what the command does before it trains."""
        if self.settings.data is not None and self.latent is not None:
            self.keep_latents(record, 0)
        images = None if self.settings.data is None else self.images()
        walks = self.walks(images)
        if images is None:
            self.own_samples(record, walks)
            images = self.images()
        chosen = self.choose(images, walks)
        self.out.mkdir(parents=True, exist_ok=True)
        record.save(self.out)  # without choices: whose directory this is stands there before anything else
        record.choices = chosen.choices
        record.judged = self.settings.num or samples_for(_JUDGES * self.left(), walks.seconds)
        write_whole(self.out / RECIPE, self.recipe(chosen).encode())
        record.save(self.out)
        self.say([choice.line() for choice in chosen.choices])
        return record

    def dry_run(self) -> None:
        """Print what would be chosen, the recipe and its cost. The samples of the walks stand in for the teacher's own."""
        images = None if self.settings.data is None or self.latent is not None else self.images()
        walks = self.walks(images)
        if self.latent is not None:
            images = self.latent.few(walks.ends)
        images = images_of(self.teacher, walks.ends) if images is None else images
        chosen = self.choose(images, walks)
        self.say([choice.line() for choice in chosen.choices])
        self.console.print(self.recipe(chosen))
        self.console.print("\n".join(self.measured(chosen.settings, images).lines()))

    def images(self) -> Images:
        """The data as the training has them: without labels that the teacher does not know."""
        if self.latent is not None:
            return self.latent.images()
        found = self.labelled
        return replace(found, labels=None, class_names=[]) if unlabelled(self.teacher, found) else found

    @cached_property
    def labelled(self) -> Images:
        """The data with all their labels, as pictures."""
        if self.latent is not None:
            return self.latent.pictures()
        settings = self.data_settings()
        options = {name: settings.get(name) for name in ("image", "label", "condition", "max_gb")}
        return load_images(
            settings["name"], settings.get("size"), settings.get("channels"), settings.get("split"), **options
        )

    def data_settings(self) -> dict[str, Any]:
        """The recipe's settings of the data, without those that depend on their labels."""
        if self.latent is not None:
            return {"name": str(self.out / LATENTS)}
        if self.settings.data is None:
            return {"name": str(self.out / SAMPLES)}
        shape = self.teacher.shape
        if len(shape) != 3 or shape[0] not in (1, 3) or shape[1] != shape[2]:
            raise ValueError(
                f"ctm distill takes teachers of square pictures of 1 or 3 channels, and this one's are {shape}"
            )
        options = data_options(self.settings, [self.teacher]) | {"split": self.settings.split}
        found = {"name": self.settings.data, "size": shape[1], "channels": shape[0]}
        return found | {name: value for name, value in options.items() if value is not None}

    def walks(self, images: Images | None) -> TeacherWalks:
        """The teacher's flow, measured under the conditions of the first images."""
        condition: Any = cycled_labels(self.teacher, NOISES)
        if self.latent is not None:
            condition = self.latent.condition(NOISES)
        elif images is not None:
            condition = taken_by(self.teacher, images.condition(np.arange(NOISES) % len(images)))
        seconds = 0.1 * self.left()
        noises, one = noises_within(self.teacher, condition, seconds)
        slow = f", not {NOISES}: one evaluation of an image takes {one:.2g} s, and measuring a tenth of the time"
        self.say([f"the teacher's flow is measured on {noises} noises{slow if noises < NOISES else ''}"])
        wishes = self.wishes
        return teacher_walks(self.teacher, condition, wishes.seed, wishes.sigma_max, noises=noises, seconds=seconds)

    def own_samples(self, record: Record, walks: TeacherWalks) -> None:
        """Make the teacher's own samples, or go on with them."""
        if self.latent is None:
            images_of(self.teacher, walks.ends)  # refuses a teacher whose samples cannot be kept
        if "digest" in record.samples and self.latent is None:
            check_samples(self.out, record.samples["digest"])
            return
        if "num" not in record.samples:
            timed = int(_SAMPLES * self.left() / (35 * walks.seconds)) // 100 * 100
            chosen = 5000 if self.wishes.steps is not None else max(500, min(50_000, timed))
            record.samples = {"num": self.settings.samples or chosen, "seed": self.wishes.seed}
            self.out.mkdir(parents=True, exist_ok=True)
            record.save(self.out)
        num, seed = record.samples["num"], record.samples["seed"]
        if self.latent is not None:
            self.say([f"data: {num:,} samples of the teacher, made once and kept as {self.out / LATENTS}"])
            self.keep_latents(record, num)
            return
        self.say([f"data: {num:,} samples of the teacher, made once and kept as {self.out / SAMPLES}"])
        record.samples["digest"] = make_samples(self.teacher, self.name, self.out, num, seed)
        record.save(self.out)

    def keep_latents(self, record: Record, num: int) -> None:
        """Encode the pictures or make the teacher's samples, or check that what is kept is still that."""
        assert self.latent is not None
        self.latent.keep(record, num)
        record.save(self.out)

    def choose(self, images: Images, walks: TeacherWalks) -> Chosen:
        if self.measure:
            self.teacher.sigma_data = measured_deviation(images)[0]
        left_out = self.settings.data is not None and self.latent is None and unlabelled(self.teacher, self.labelled)
        return choose(
            self.teacher,
            self.data_settings() | ({"unlabelled": True} if left_out else {}),
            self.name,
            self.wishes,
            walks,
            seconds_left=_TRAINS * self.left(),
            step_seconds=lambda settings: self.measured(settings, images).expected_seconds,
        )

    def measured(self, settings: dict[str, Any], images: Images) -> DryRun:
        """Steps of a recipe, taken and measured."""
        recipe, _ = parse_recipe(["--config", yaml.safe_dump(settings, sort_keys=False)])
        return dry_run(recipe, images)

    def recipe(self, chosen: Chosen) -> str:
        data = "samples of it" if self.settings.data is None else self.settings.data
        return recipe_text(
            chosen.settings, chosen.choices, f"A student of {self.name} on {data}, as ctm distill chose it."
        )

    def judge(self, directory: RunDirectory, record: Record) -> None:
        """The table, and report.html."""
        features, why = feature_network(self.labelled, self.settings.features)
        names = self.name, str(self.out)
        if features is None:
            plain_report(directory, self.teacher, names, self.labelled, record)
        else:
            seconds = {"training": directory.read_metrics()[-1]["seconds"]}
            report(directory, self.teacher, names, self.labelled, record, features=features, seconds=seconds)
        self.say([f"features: {why}", f"model: {directory.model}; report: {self.out / 'report.html'}"])

    def say(self, lines: Sequence[str]) -> None:
        for line in lines:
            self.console.print(f"{self.out.name}: {line}")


def _scales(text: str) -> tuple[float, float]:
    """The lowest and highest guidance scale of '1,5'. Raises ValueError for any other text."""
    found = numbers(text, float, "--guidance")
    if len(found) != 2 or not 0 <= found[0] <= found[1]:
        raise ValueError(f"--guidance takes LOW,HIGH such as 1,5, got {text!r}")
    return found[0], found[1]
