"""A run's directory: config.yaml, made_of.json, metrics.jsonl, events, samples/, checkpoints/<step>/ and model/ (the EMA
weights)."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from ctm.files import write_whole
from ctm.foreign.text import JSONObject, plain, read_json, read_yaml
from ctm.lock import LOCK, DirectoryLock
from ctm.models.grids import TunedGrid, read_grids
from ctm.models.protocol import RangedDenoiser
from ctm.teachers.torch_files import read_torch
from ctm.training.forms import is_number, recipe_damage
from ctm.training.rows import read_rows
from ctm.training.storage import clear_leftovers, damage, remove, replace_directory, sync_files, write_directory

__all__ = ["CannotWrite", "Checkpoint", "RunDirectory"]

_LOG = logging.getLogger(__name__)
_BEFORE = ("data", "distill.json", "recipe.yaml")  # what ctm distill writes into a directory before it trains there
_UNFIT = (
    RuntimeError,
    ValueError,
    KeyError,
    IndexError,
    TypeError,
    AttributeError,
    OverflowError,
    SafetensorError,
    FileNotFoundError,
)


class CannotWrite(ValueError):
    """The run directory refuses writing: the disk is full, or there is no permission. Earlier checkpoints are intact."""


class Saved(Protocol):
    """What can be written as a directory: a model, or adapters."""

    def save_pretrained(self, directory: Path, /) -> object: ...


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint says besides tensors: the step, the seconds trained so far, and what the trainer added."""

    step: int
    elapsed: float
    extra: JSONObject


class RunDirectory:
    """The files of one run. Everything appears under its name only when it is whole. keep: number of checkpoints."""

    def __init__(self, path: Path, keep: int = 2) -> None:
        self.path, self.keep = path, keep
        self.samples, self.checkpoints, self.model = path / "samples", path / "checkpoints", path / "model"
        self.config, self.metrics = path / "config.yaml", path / "metrics.jsonl"
        self.lock = DirectoryLock(path)

    def check_free(self) -> None:
        """Raises ValueError where the directory is there and is neither free for a run nor one."""
        free = not self.path.exists() or (
            self.path.is_dir() and set(_names(self.path)) <= {".config.yaml.writing", LOCK, *_BEFORE}
        )
        if not free and not self.config.is_file():
            raise ValueError(f"{self.path} exists and is not a run directory (no config.yaml): use another --out")

    def claim(self, settings: str, check: Callable[[Mapping[str, object]], None] | None = None) -> None:
        """Take the directory for a run with these settings (YAML), or continue in it, and keep other processes out until
        `release`; what a killed writer left is cleared away.

        check: called with the settings the directory holds, where it holds a run; raises ValueError where those given do not
        continue it. Raises ValueError where it holds something else, DirectoryInUse where another process writes it,
        CannotWrite where it cannot be written to."""
        self.check_free()
        with self.writing():
            self.path.mkdir(parents=True, exist_ok=True)
            self.lock.take()
        if self.config.is_file() and check is not None:
            check(self.settings())
        with self.writing():
            clear_leftovers(self.path)
            if not self.config.is_file() or self.config.read_bytes() != settings.encode():
                write_whole(self.config, settings.encode())
            for directory in (self.samples, self.checkpoints):
                directory.mkdir(exist_ok=True)
            clear_leftovers(self.checkpoints)

    def release(self) -> None:
        """Let other processes write the directory."""
        with self.writing():
            self.lock.release()

    def settings(self) -> JSONObject:
        """The recipe in config.yaml. Raises ValueError naming the file where it is damaged."""
        try:
            found = read_yaml(self.config)
            what = recipe_damage(found)
        except (yaml.YAMLError, ValueError):
            found, what = None, "it is no recipe in YAML"
        if what is not None:
            raise ValueError(
                f"{self.config} is damaged: {what}. Restore it (it is what ctm train --print_config prints for "
                "this run), or use another --out"
            )
        settings: JSONObject = found
        return settings

    def steps(self) -> list[int]:
        """The steps of the checkpoints there are, whole or not, in order."""
        return sorted(int(name) for name in _names(self.checkpoints) if name.isascii() and name.isdigit())

    def checkpoint(self, step: int) -> Path:
        """Where the checkpoint of a step is."""
        return self.checkpoints / f"{step:08d}"

    def latest(self) -> int | None:
        """The step of the newest whole checkpoint, None before the first. Each damaged one on the way is named in a warning.

        Raises ValueError where there are checkpoints but none is whole."""
        found: list[str] = []
        for step in reversed(self.steps()):
            wrong = damage(self.checkpoint(step))
            if wrong is None:
                for line in found:
                    _LOG.warning("%s: passed over, going on from step %d", line, step)
                return step
            found.append(f"checkpoint {self.checkpoint(step)} is damaged ({wrong})")
        if found:
            raise ValueError(
                f"{'; '.join(found)}. No whole checkpoint is left: restore one, or remove {self.checkpoints} to start again"
            )
        return None

    def save(
        self,
        step: int,
        modules: Mapping[str, object],
        optimizers: Mapping[str, object],
        extra: Mapping[str, object],
        elapsed: float,
    ) -> None:
        """Write checkpoints/<step>/, whole or not at all, and keep the newest of those up to `step`.

        modules, optimizers: by name, anything with state_dict. extra: what else `load` shall give back, as JSON.
        Raises CannotWrite, the earlier checkpoints intact."""
        state = {"step": step, "elapsed_seconds": elapsed, "extra": dict(extra)}
        with self.writing():
            write_directory(self.checkpoint(step), _files(modules, optimizers, state))
            for old in [other for other in self.steps() if other <= step][: -self.keep]:
                shutil.rmtree(self.checkpoint(old))

    def load(self, step: int, modules: Mapping[str, Any], optimizers: Mapping[str, Any]) -> Checkpoint:
        """Load the checkpoint of a step in place. Raises ValueError where it does not hold these modules and optimisers."""
        checkpoint = self.checkpoint(step)
        with self.fitting(step):
            _check_names(checkpoint, {f"{name}.safetensors" for name in modules})
            for name, module in modules.items():
                module.load_state_dict(load_file(checkpoint / f"{name}.safetensors"))
            for name, optimizer in optimizers.items():
                saved = read_torch(checkpoint / f"{name}.optimizer.pt")
                if not all(is_number(group["lr"]) for group in saved["param_groups"]):
                    raise ValueError(f"the learning rate of {name} is no number")
                optimizer.load_state_dict(saved)
            state = json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))
            if state["step"] != step or not is_number(state["elapsed_seconds"]) or not isinstance(state["extra"], dict):
                raise ValueError("state.json is of another form")
            return Checkpoint(step, float(state["elapsed_seconds"]), state["extra"])

    @contextmanager
    def fitting(self, step: int) -> Iterator[None]:
        """Turn what goes wrong inside the block with a checkpoint's content into a ValueError that says what to do."""
        try:
            yield
        except _UNFIT as error:
            reason = plain(str(error), 300) or type(error).__name__
            raise ValueError(
                f"checkpoint {self.checkpoint(step)} does not fit this recipe ({reason}): another version wrote it; use that "
                "one, or another --out"
            ) from error

    def publish(self, model: Saved, name: str = "model", card: str | None = None) -> None:
        """Write a directory of that name by the model's save_pretrained, replacing the one before as a whole. card: its
        README.md."""
        temporary = self.path / f".writing-{name}"
        with self.writing():
            try:
                remove(temporary)
                model.save_pretrained(temporary)
                if card is not None:
                    (temporary / "README.md").write_text(card, encoding="utf-8")
                sync_files(temporary)
                replace_directory(temporary, self.path / name)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)

    def tuned_grids(self, name: str, model: RangedDenoiser) -> dict[int, TunedGrid]:
        """The grids that `ctm tune` has put into the model directory of that name; none where it is not there or not readable."""
        try:
            kept = read_json(self.path / name / "config.json").get("grids", {})
            return read_grids(kept, model.sigma_min, model.sigma_max, name)
        except (OSError, ValueError, AttributeError):
            return {}

    def log(self, row: dict[str, float]) -> None:
        """Append one line to metrics.jsonl."""
        with self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def read_metrics(self) -> list[dict[str, float]]:
        """The rows of metrics.jsonl; damaged lines are left out with a warning."""
        return read_rows(self.metrics)

    def forget_after(self, step: int, *, closed: bool = False) -> None:
        """Drop the rows of steps that a continued run will write again. closed: the row of `step` itself too, because the run
        once ended there, between two rows, and now goes on beyond."""
        last = step - 1 if closed else step
        rows = [row for row in self.read_metrics() if row["step"] <= last]
        with self.writing():
            write_whole(self.metrics, "".join(json.dumps(row) + "\n" for row in rows).encode())

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Turn a failure to write inside the block into CannotWrite, which says what is left."""
        try:
            yield
        except (OSError, SafetensorError) as error:
            steps = self.steps()
            left = f"the checkpoint of step {steps[-1]} is intact" if steps else "there is no checkpoint yet"
            raise CannotWrite(
                f"{self.path} cannot be written to ({_reason(error)}): training stops, {left}. Make room or give "
                "permission, then the same command goes on"
            ) from error


def _files(
    modules: Mapping[str, Any], optimizers: Mapping[str, Any], state: Mapping[str, Any]
) -> Iterator[tuple[str, bytes]]:
    """The files of a checkpoint, one in memory at a time."""
    for name, module in modules.items():
        tensors = {key: value.detach().cpu().contiguous() for key, value in module.state_dict().items()}
        yield f"{name}.safetensors", save(tensors)
    for name, optimizer in optimizers.items():
        content = io.BytesIO()
        torch.save(optimizer.state_dict(), content)
        yield f"{name}.optimizer.pt", content.getvalue()
    yield "state.json", (json.dumps(state) + "\n").encode()


def _check_names(checkpoint: Path, expected: set[str]) -> None:
    """Raises ValueError where a checkpoint has not the weights of just these files, such as a player's weights."""
    there = {file.name for file in checkpoint.glob("*.safetensors")}
    for name in sorted(expected - there):
        raise ValueError(
            f"it has no {name}, the weights of the {name.removesuffix('.safetensors')} that this recipe trains"
        )
    for name in sorted(there - expected):
        raise ValueError(
            f"its {name} are weights of a {name.removesuffix('.safetensors')} that this recipe does not train"
        )


def _reason(error: OSError | SafetensorError) -> str:
    """The system's words; safetensors wraps them as '… (os error 28)'."""
    number = re.search(r"\(os error (\d+)\)", str(error))
    return os.strerror(int(number[1])) if number else getattr(error, "strerror", None) or str(error)


def _names(directory: Path) -> list[str]:
    """The names in a directory, none where it is not there or cannot be read."""
    try:
        return [entry.name for entry in directory.iterdir()]
    except OSError:
        return []
