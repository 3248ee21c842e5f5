"""A run's directory: config.yaml, metrics.jsonl, events, samples/, checkpoints/<step>/ and model/ (the EMA weights)."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from ctm.foreign.text import read_yaml
from ctm.teachers.torch_files import read_torch
from ctm.training.storage import clear_leftovers, damage, replace_directory, sync_files, write_directory, write_whole

__all__ = ["CannotWrite", "Checkpoint", "RunDirectory", "write_whole"]

_LOG = logging.getLogger(__name__)


class CannotWrite(ValueError):
    """The run directory refuses writing: the disk is full, or there is no permission. Earlier checkpoints are intact."""


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint says besides tensors: the step, the seconds trained so far, and what the trainer added."""

    step: int
    elapsed: float
    extra: dict[str, Any]


class RunDirectory:
    """The files of one run. Everything appears under its name only when it is whole. keep: number of checkpoints."""

    def __init__(self, path: Path, keep: int = 2) -> None:
        self.path, self.keep = path, keep
        self.samples, self.checkpoints, self.model = path / "samples", path / "checkpoints", path / "model"
        self.config, self.metrics = path / "config.yaml", path / "metrics.jsonl"

    def claim(self, settings: str) -> None:
        """Take the directory for a run with these settings (YAML), or continue in it where they are the same; what a killed
        writer left is cleared away.

        Raises ValueError where it was used with others, naming them, or holds something else, CannotWrite where it cannot
        be written to."""
        if self.config.is_file():
            other = _differences(read_yaml(self.config), yaml.safe_load(settings))
            if other:
                raise ValueError(
                    f"{self.path} holds a run with other settings ({'; '.join(other[:4])}). Use another --out, or repeat "
                    f"the settings of {self.config} to continue that run"
                )
        elif self.path.exists() and not (self.path.is_dir() and set(_names(self.path)) <= {".config.yaml.writing"}):
            raise ValueError(f"{self.path} exists and is not a run directory (no config.yaml): use another --out")
        with self.writing():
            self.path.mkdir(parents=True, exist_ok=True)
            clear_leftovers(self.path)
            if not self.config.is_file():
                write_whole(self.config, settings.encode())
            for directory in (self.samples, self.checkpoints):
                directory.mkdir(exist_ok=True)
            clear_leftovers(self.checkpoints)

    def steps(self) -> list[int]:
        """The steps of the checkpoints there are, whole or not, in order."""
        return sorted(int(name) for name in _names(self.checkpoints) if name.isdigit())

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
        modules: Mapping[str, Any],
        optimizers: Mapping[str, Any],
        extra: Mapping[str, Any],
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
        try:
            for name, module in modules.items():
                module.load_state_dict(load_file(checkpoint / f"{name}.safetensors"))
            for name, optimizer in optimizers.items():
                file = checkpoint / f"{name}.optimizer.pt"
                optimizer.load_state_dict(read_torch(file))
            state = json.loads((checkpoint / "state.json").read_text())
            return Checkpoint(state["step"], state["elapsed_seconds"], state["extra"])
        except (RuntimeError, ValueError, KeyError, FileNotFoundError) as error:
            raise ValueError(
                f"checkpoint {checkpoint} does not fit this recipe ({' '.join(str(error).split())[:300]}): another version "
                "wrote it; use that one, or another --out"
            ) from error

    def publish(self, model: Any, name: str = "model") -> None:
        """Write a model directory of that name, replacing the one before as a whole."""
        temporary = self.path / f".writing-{name}"
        with self.writing():
            try:
                shutil.rmtree(temporary, ignore_errors=True)
                model.save_pretrained(temporary)
                sync_files(temporary)
                replace_directory(temporary, self.path / name)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)

    def log(self, row: dict[str, float]) -> None:
        """Append one line to metrics.jsonl."""
        with self.metrics.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def read_metrics(self) -> list[dict[str, float]]:
        """The rows of metrics.jsonl; a last line that a killed writer left unfinished does not count."""
        if not self.metrics.is_file():
            return []
        text = self.metrics.read_text()
        return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]

    def forget_after(self, step: int) -> None:
        """Drop the rows of steps that a continued run will write again."""
        rows = [row for row in self.read_metrics() if row["step"] <= step]
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


def _differences(before: Any, now: Any, path: str = "") -> list[str]:
    """Settings that differ, as 'name: before → now'."""
    if isinstance(before, dict) and isinstance(now, dict):
        keys = sorted(before.keys() | now.keys())
        return [
            d for key in keys for d in _differences(before.get(key), now.get(key), f"{path}.{key}" if path else key)
        ]
    if isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        return [d for i, pair in enumerate(zip(before, now, strict=True)) for d in _differences(*pair, f"{path}[{i}]")]
    return [] if before == now else [f"{path}: {before} there, {now} here"]
